"""Which devices `benchmarks/scaling.py` compares."""

from pathlib import Path

BENCHMARKS = Path(__file__).parent.parent / 'benchmarks'


def test_powers_of_two_that_divide_into_slices(monkeypatch):
    monkeypatch.syspath_prepend(BENCHMARKS)
    import scaling

    assert scaling.sizes(8, 1) == [1, 2, 4, 8]
    assert scaling.sizes(6, 1) == [1, 2, 4]
    assert scaling.sizes(8, 4) == [4, 8]
    assert scaling.sizes(2, 4) == scaling.sizes(8, 3) == []
