"""Mixup and CutMix: against a loop, and the same pairs in microbatches and on meshes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from mim_jax.data.mixing import mix
from mim_jax.errors import UserError

CLASSES = 8


def examples(n=8, *, size=(12, 10)):
    """Keys, images of one number each, and one-hot targets of that number."""
    keys = jax.random.split(jax.random.key(0), n)
    images = np.zeros((n, *size, 3), np.float32) + np.arange(n)[:, None, None, None]
    return keys, jnp.asarray(images), jax.nn.one_hot(np.arange(n) % CLASSES, CLASSES)


def partners(n):
    return (np.arange(n) - n // 2) % n


def test_nothing_is_mixed_without_parameters():
    keys, images, targets = examples()
    out, mixed = mix(keys, images, targets)
    np.testing.assert_array_equal(out, images)
    np.testing.assert_array_equal(mixed, targets)


def test_mixup_blends_images_and_targets_by_one_share():
    keys, images, targets = examples(600)
    targets = jax.nn.one_hot(np.arange(600), 600)
    out, mixed = (np.asarray(x) for x in mix(keys, images, targets, mixup=0.8))
    shares = mixed[np.arange(600), np.arange(600)]
    np.testing.assert_allclose(mixed[np.arange(600), partners(600)], 1 - shares, atol=1e-6)
    np.testing.assert_allclose(mixed.sum(axis=1), 1.0, atol=1e-6)
    expected = shares * np.arange(600) + (1 - shares) * partners(600)
    np.testing.assert_allclose(
        out, np.broadcast_to(expected[:, None, None, None], out.shape), atol=1e-3
    )
    assert stats.kstest(shares, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_cutmix_replaces_a_box_and_counts_what_is_left():
    """timm: the box has sides sqrt(1 - share) of the image's, in whole pixels, halved down on both
    sides of a centre anywhere, and is cut at the edges."""
    keys, images, targets = examples(600)
    targets = jax.nn.one_hot(np.arange(600), 600)
    out, mixed = (np.asarray(x) for x in mix(keys, images, targets, cutmix=1.0))
    whole = 0
    for i, (image, target) in enumerate(zip(out, mixed, strict=True)):
        replaced = image[..., 0] != i
        assert (image[replaced] == partners(600)[i]).all()
        rows, columns = np.flatnonzero(replaced.any(1)), np.flatnonzero(replaced.any(0))
        if len(rows):
            box = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
            assert replaced[box].all()
            # 12 x 10 pixels; inside, both sides are even and say the same share.
            inside = rows[0] > 0 and rows[-1] < 11 and columns[0] > 0 and columns[-1] < 9
            whole += inside
            if inside:
                assert len(rows) % 2 == 0 and len(columns) % 2 == 0
                assert abs(len(rows) / 12 - len(columns) / 10) < 0.35
        share = 1 - replaced.mean()
        np.testing.assert_allclose(target[i], share, atol=1e-6)
        np.testing.assert_allclose(target[partners(600)[i]], 1 - share, atol=1e-6)
    assert whole > 50


def test_either_of_both_by_the_switch():
    keys, images, targets = examples(600)
    out = np.asarray(mix(keys, images, targets, mixup=0.8, cutmix=1.0, switch=0.3)[0])
    blended = (np.abs(out - out.round()) > 1e-3).any((1, 2, 3))
    assert abs(blended.mean() - 0.7) < 0.08


@pytest.mark.parametrize('options', [dict(mixup=0.8), dict(cutmix=1.0)])
def test_a_shared_key_draws_once_for_the_batch(options):
    """timm's mode `batch`: one share, one box, for every pair."""
    keys, images, targets = examples()
    mixed_by = jax.jit(lambda k, shared: mix(k, images, targets, shared=shared, **options))
    shares = []
    for seed in range(300):
        out, mixed = mixed_by(keys, jax.random.key(seed))
        out, mixed = np.asarray(out), np.asarray(mixed)
        own = mixed[np.arange(8), np.arange(8)]
        np.testing.assert_allclose(own, own[0], atol=1e-6)
        np.testing.assert_allclose(mixed[np.arange(8), partners(8)], 1 - own, atol=1e-6)
        replaced = (out[1:, ..., 0] - np.arange(1, 8)[:, None, None]) / (
            partners(8)[1:] - np.arange(1, 8)
        )[:, None, None]
        np.testing.assert_allclose(
            replaced, np.broadcast_to(replaced[0], replaced.shape), atol=1e-5
        )
        shares.append(own[0])
        if seed < 3:
            np.testing.assert_array_equal(mixed_by(keys[::-1], jax.random.key(seed))[0], out)
    assert len(set(np.round(shares, 3))) > 20  # of 12 x 10 pixels CutMix leaves few shares
    if 'mixup' in options:
        assert stats.kstest(shares, stats.beta(0.8, 0.8).cdf).pvalue > 1e-3


def test_a_shared_key_chooses_one_of_both_for_the_batch():
    keys, images, targets = examples()
    options = dict(mixup=0.8, cutmix=1.0, switch=0.3)
    mixed_by = jax.jit(lambda shared: mix(keys, images, targets, shared=shared, **options))
    kinds = []
    for seed in range(300):
        out = np.asarray(mixed_by(jax.random.key(seed))[0])
        blended = (np.abs(out - out.round()) > 1e-3).any((1, 2, 3))
        assert blended.all() or not blended.any()
        kinds.append(blended.all())
    assert abs(np.mean(kinds) - 0.7) < 0.1


@pytest.mark.parametrize('accumulation', [2, 4])
def test_microbatches_mix_as_the_whole_batch_does(accumulation):
    """As the train step splits: row i goes to microbatch i mod A."""
    keys, images, targets = examples(16)
    options = dict(mixup=0.8, cutmix=1.0)
    whole = mix(keys, images, targets, **options)
    for part in range(accumulation):
        rows = slice(part, None, accumulation)
        micro = mix(keys[rows], images[rows], targets[rows], **options)
        for mine, theirs in zip(micro, whole, strict=True):
            np.testing.assert_allclose(mine, theirs[rows], atol=1e-6)


@pytest.mark.parametrize('ways', [2, 8])
def test_meshes_mix_as_one_device_does(ways):
    keys, images, targets = examples(16)
    mesh = jax.make_mesh((ways,), ('data',), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec('data'))
    mixed = jax.jit(lambda *batch: mix(*batch, mixup=0.8, cutmix=1.0))
    spread = mixed(*jax.device_put((keys, images, targets), place))
    for mine, theirs in zip(spread, mixed(keys, images, targets), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


def test_an_odd_number_has_no_pairs():
    with pytest.raises(UserError, match='7 is odd; change config.data.batch_size'):
        mix(*examples(7), mixup=0.8)
