import numpy as np
import pytest

from mim_jax.pilot_study import probe


@pytest.fixture
def data():
    """Three overlapping classes in five features of unlike scale, one of which never changes."""
    rng = np.random.default_rng(0)
    labels = rng.integers(3, size=300)
    tokens = rng.normal(size=(300, 5)) + 0.8 * rng.normal(size=(3, 5))[labels]
    tokens = tokens * [1, 10, 0.1, 1, 0] + [0, 5, -3, 100, 7]
    return tokens.astype(np.float32), labels


def test_the_optimum_is_that_of_scikit_learn(data):
    from sklearn.linear_model import LogisticRegression

    tokens, labels = data
    x = tokens.astype(np.float64)
    scale = np.where(np.ptp(x, axis=0) > 0, x.std(axis=0), 1)
    x = (x - x.mean(axis=0)) / scale
    model = LogisticRegression(C=1 / (probe.L2 * len(x)), tol=1e-8, max_iter=10000).fit(x, labels)
    found = probe.fit(tokens, labels, num_classes=3)
    logits = np.asarray(found(tokens))
    probabilities = np.exp(logits - logits.max(axis=1, keepdims=True))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, model.predict_proba(x), atol=2e-3)
    assert (logits.argmax(axis=1) == model.predict(x)).mean() > 0.99


def test_chunks_and_padding_change_nothing(data, monkeypatch):
    whole = probe.fit(*data, num_classes=3)
    monkeypatch.setattr(probe, 'ROWS', 64)  # 300 rows: five chunks, the last one padded
    chunked = probe.fit(*data, num_classes=3)
    tokens = data[0]
    np.testing.assert_allclose(chunked(tokens), whole(tokens), atol=5e-3)


def test_a_class_without_rows_is_never_said(data):
    found = probe.fit(*data, num_classes=4)
    assert np.asarray(found(data[0])).argmax(axis=1).max() == 2


def test_leading_axes(data):
    tokens, labels = data
    found = probe.fit(tokens, labels, num_classes=3)
    many = tokens.reshape(10, 30, 5)
    np.testing.assert_allclose(found(many).reshape(300, 3), found(tokens), rtol=1e-4, atol=1e-4)
