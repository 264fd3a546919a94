import types

import pytest


@pytest.fixture
def unlaid(monkeypatch):
    """Sheets are what they would be laid out from: `columns` [[B,H,W,3], …] and `titles`, and
    `heading` and `legend`.
    """
    from mim_jax.visualize import layout, pictures

    def sheet(columns, *, titles, heading=None, legend=()):
        return types.SimpleNamespace(
            columns=columns, titles=titles, heading=heading, legend=list(legend)
        )

    monkeypatch.setattr(pictures, 'sheet', sheet)
    monkeypatch.setattr(layout, 'sheet', sheet)
