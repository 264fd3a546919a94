import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.pilot_study import study
from mim_jax.pilot_study.study import Aggregation

GRID = (2, 3)
CLASSES = 2


@pytest.mark.parametrize(
    'tokens, groups, asked, expected',
    [
        (196, None, None, (98, 1)),
        (196, 98, 14, (7, 14)),
        (9, None, None, (4, 1)),  # 5 groups: half, rounded up
        (196, 60, None, (34, 4)),  # 2 steps of 68 would leave 196, 128, 64: no step can do more
        (16, 1, None, (1, 15)),
        (16, 16, None, (0, 1)),
    ],
)
def test_aggregation_comes_to_exactly_so_many_groups(tokens, groups, asked, expected):
    made = Aggregation.make(tokens, num_groups=groups, num_steps=asked)
    assert (made.per_step, made.num_steps) == expected
    left = tokens
    for _ in range(made.num_steps):
        left -= min(made.per_step, left // 2)
    assert left == made.num_groups == (groups or tokens - tokens // 2)


def test_impossible_aggregations():
    with pytest.raises(UserError, match='num_groups=17.*16 tokens'):
        Aggregation.make(16, num_groups=17)
    with pytest.raises(UserError, match='steps=3.*possible are 1, 2, 4, 8'):
        Aggregation.make(16, num_groups=8, num_steps=3)
    with pytest.raises(UserError, match='one token'):
        Aggregation.make(1)


def make_batches(seed, *, count=3, size=8):
    """Tokens in place of images: near the direction of their class, with noise; padding wild."""
    rng = np.random.default_rng(seed)
    centre = np.random.default_rng(9).normal(size=(CLASSES, 4))
    batches = []
    for i in range(count):
        labels = rng.integers(CLASSES, size=size).astype(np.int32)
        tokens = centre[labels][:, None] + 2 * rng.normal(size=(size, 6, 4))
        valid = np.arange(size) < size - 2 * (i == count - 1)
        tokens[~valid] = 1e3
        batch = {'images': tokens.astype(np.float32), 'labels': labels, 'valid': valid}
        batches.append(batch)
    return batches


def see(tokens):
    """Tokens as they are, and neighbours 0-1, 2-3, 4-5 averaged."""
    pairs = tokens.reshape(len(tokens), 3, 2, 4).mean(axis=2, keepdims=True)
    return jnp.asarray(tokens), jnp.asarray(np.tile(pairs, (1, 1, 2, 1)).reshape(tokens.shape))


def test_class_means_and_probes_come_from_valid_images():
    batches = make_batches(0)
    learnt = study.learn(see, batches, num_classes=CLASSES, directions=None)
    tokens = np.concatenate([b['images'][b['valid']] for b in batches])
    labels = np.concatenate([b['labels'][b['valid']] for b in batches])
    for c in range(CLASSES):
        mean = tokens[labels == c].reshape(-1, 4).mean(axis=0)
        np.testing.assert_allclose(learnt.directions[c], mean / np.linalg.norm(mean), atol=1e-5)
    for probe, x in zip(learnt.probes, see(tokens), strict=True):
        right = np.asarray(probe(x)).argmax(axis=-1) == labels[:, None]
        assert right.mean() > 0.7


def test_figures_of_whole_runs_against_loops():
    learnt = study.learn(see, make_batches(0), num_classes=CLASSES, directions=None)
    batches = make_batches(1)
    found = study.measure(see, batches, learnt, grid=GRID)
    count = sum(b['valid'].sum() for b in batches)
    assert all(values.shape == (2, count) for values in found.values())
    neighbours = [(0, 1), (1, 2), (3, 4), (4, 5), (0, 3), (1, 4), (2, 5)]
    for which in (0, 1):
        row = 0
        for batch in batches:
            for tokens, label in zip(
                np.asarray(see(batch['images'])[which])[batch['valid']],
                batch['labels'][batch['valid']],
                strict=True,
            ):
                said, scored, own = [], [], 0
                probe = learnt.probes[which]
                for token in tokens:
                    cosine = learnt.directions @ token / np.linalg.norm(token)
                    said.append(int(cosine.argmax()))
                    own += cosine[label] / 6
                    scored.append(int((token @ probe.kernel + probe.bias).argmax()))
                near = sum(said[i] == said[j] for i, j in neighbours) / 7
                expected = {
                    'accuracy': said.count(label) / 6,
                    'probe_accuracy': scored.count(label) / 6,
                    'class_similarity': own,
                    'neighbour_agreement': near,
                }
                for name, value in expected.items():
                    assert found[name][which, row] == pytest.approx(value, abs=1e-5), name
                row += 1


def test_directions_from_text_are_taken_as_they_are():
    text = np.eye(CLASSES, 4, dtype=np.float32)
    learnt = study.learn(see, make_batches(0), num_classes=CLASSES, directions=text)
    np.testing.assert_array_equal(learnt.directions, text)
