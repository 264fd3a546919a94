import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.cluster import KMeans as SklearnKMeans

from mim_jax.morphing.clusters import KMeans, RandomGroups, kmeans_groups, kmedoids_groups


def example(seed, shape):
    """Tokens like a teacher's: a large common part, a few objects, some of a token's own."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((5, shape[2]))[rng.integers(0, 5, shape[:2])]
    common = 3 * rng.standard_normal(shape[2])
    tokens = (rng.standard_normal(shape) + centres + common).astype(np.float32)
    first = np.stack([rng.permutation(shape[1]) for _ in range(shape[0])]).astype(np.int32)
    return tokens, first


@pytest.mark.parametrize('shape', [(3, 25, 6), (2, 64, 24)])
@pytest.mark.parametrize('iterations', [1, 4, 25])
def test_kmeans_gives_the_labels_of_scikit_learn(shape, iterations):
    tokens, first = example(iterations, shape)
    for num_groups in (1, 2, 7, shape[1] // 2, shape[1] - 1):
        found = kmeans_groups(tokens, num_groups, first=first, iterations=iterations)
        for image in range(shape[0]):
            centres = tokens[image][first[image][:num_groups]]
            peer = SklearnKMeans(
                num_groups, init=centres, n_init=1, max_iter=iterations, tol=0, algorithm='lloyd'
            )
            np.testing.assert_array_equal(found[image], peer.fit(tokens[image]).labels_)


def test_a_centre_without_tokens_stays():
    tokens = np.array([[0.0], [0.0], [1.0], [9.0]], np.float32)[None]
    # The two centres at 0 tie, so that the second gets nothing; from 0, and not from anywhere else,
    # it takes the tokens at 0 over as soon as the first has moved to the mean of 0, 0 and 1.
    first = np.array([[0, 1, 3, 2]], np.int32)
    once = kmeans_groups(tokens, 3, first=first, iterations=1)
    np.testing.assert_array_equal(once, [[1, 1, 0, 2]])


def kmedoids_by_hand(tokens, first, iterations):
    """One image, in NumPy float64, token by token."""
    x = np.float64(tokens)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)

    def distance(i, j):
        return 0.0 if i == j else 1 - unit[min(i, j)] @ unit[max(i, j)]

    def nearest():
        return [int(np.argmin([distance(i, m) for m in medoids])) for i in range(len(x))]

    medoids = list(first)
    for _ in range(iterations):
        groups = nearest()
        for number in range(len(medoids)):
            members = [i for i in range(len(x)) if groups[i] == number]
            if members:
                totals = [sum(distance(i, j) for j in members) for i in members]
                medoids[number] = members[int(np.argmin(totals))]
    return nearest()


@pytest.mark.parametrize('iterations', [1, 3, 8])
def test_kmedoids_equals_the_loop_over_tokens(iterations):
    tokens, first = example(10 + iterations, (3, 30, 8))
    for num_groups in (1, 2, 6, 15, 29):
        found = kmedoids_groups(tokens, num_groups, first=first, iterations=iterations)
        for image in range(3):
            expected = kmedoids_by_hand(tokens[image], first[image][:num_groups], iterations)
            np.testing.assert_array_equal(found[image], expected)


def test_kmedoids_of_tokens_of_norm_zero_is_finite_work():
    tokens, first = example(0, (1, 12, 4))
    tokens[0, 3:7] = 0
    found = np.asarray(kmedoids_groups(tokens, 4, first=first, iterations=5))
    assert set(found.ravel()) <= set(range(4))


def test_normalized_kmeans_ignores_the_length_of_tokens():
    tokens, _ = example(3, (2, 20, 5))
    lengths = 2.0 ** np.random.default_rng(0).integers(-3, 4, (2, 20, 1))
    keys = jax.random.split(jax.random.key(0), 2)
    schedule = jnp.int32(4), jnp.int32(3)
    for normalize in (True, False):
        grouping = KMeans(normalize=normalize)
        plain = grouping(tokens, schedule, keys=keys)
        scaled = grouping((tokens * lengths).astype(np.float32), schedule, keys=keys)
        assert np.array_equal(plain, scaled) == normalize


def test_random_groups_have_the_number_asked_for_and_favour_nobody():
    grouping = RandomGroups()
    keys = jax.random.split(jax.random.key(0), 6000)
    tokens = jnp.zeros((6000, 6, 1))
    groups = np.asarray(grouping(tokens, (jnp.int32(2), jnp.int32(1)), keys=keys))  # 4 groups
    assert all(set(image) == set(range(4)) for image in groups)
    # Every token is in every group equally often: 1500 times, standard deviation 34.
    counts = np.stack([(groups == number).sum(axis=0) for number in range(4)])
    assert np.abs(counts - 1500).max() < 4 * 34
    # Two tokens share a group with the same probability, whichever they are. Of the 2 tokens that
    # begin none, each joins a given one of 4; both share their group if they join the same.
    pairs = np.mean(groups[:, :, None] == groups[:, None, :], axis=0)[np.triu_indices(6, 1)]
    expected = (2 * 4 * (1 / 4) + 1 / 4) / 15
    assert np.abs(pairs - expected).max() < 4 * np.sqrt(expected * (1 - expected) / 6000)
