"""Device side: flips, maps, views like others, per-example keys."""

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.data import Colors, Crop, View, augment

JITTER = Colors(brightness=0.4, contrast=0.4, saturation=0.4)


def keys(n, seed=0):
    return jax.random.split(jax.random.key(seed), n)


def images(n=6, size=(5, 7), channels=3, seed=0):
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (n, *size, channels), dtype=np.uint8)


def view(**changes):
    return View(**{'crop': Crop(), 'image_size': (5, 7)} | changes)


def seen(k, batch, **views):
    return augment.augment_views(k, batch, views)


def flipped_of(plain, out):
    """Which images are mirrored; each must be, or be as it was."""
    axes = tuple(range(1, plain.ndim))
    same = np.isclose(out, plain, atol=1e-6).all(axes)
    mirrored = np.isclose(out, plain[:, :, ::-1], atol=1e-6).all(axes)
    assert np.all(same ^ mirrored)
    return mirrored


def test_without_options_is_only_a_change_of_range():
    x = images()
    out = seen(keys(6), {'images': x, 'labels': np.arange(6)}, images=view())
    assert out['images'].dtype == jnp.float32
    np.testing.assert_allclose(out['images'], x / 255.0, rtol=1e-6)
    np.testing.assert_array_equal(out['labels'], np.arange(6))


def test_flips_are_as_frequent_as_said_and_move_maps_too():
    x = images(400, (3, 4))
    batch = {'images': x, 'images_mask': x[..., 0] > 127, 'images_boxes': np.zeros((400, 4))}
    out = seen(keys(400), batch, images=view(flip=0.3, maps=('mask',), boxes=True))
    flipped = flipped_of(x / 255.0, out['images'])
    assert abs(flipped.mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 400)
    np.testing.assert_array_equal(out['images_flipped'], flipped)
    mask = batch['images_mask']
    expected = np.where(flipped[:, None, None], mask[:, :, ::-1], mask)
    np.testing.assert_array_equal(out['images_mask'], expected)


def test_a_view_like_another_has_its_flip_and_colours_of_its_own():
    x = images(40)
    views = {'images': view(flip=0.5), 'same': view(like='images')}
    out = seen(keys(40), {'images': x}, **views)
    np.testing.assert_array_equal(out['same'], out['images'])
    assert 0 < flipped_of(x / 255.0, out['same']).sum() < 40
    jittered = {name: view(colors=JITTER, like=v.like) for name, v in views.items()}
    out = seen(keys(40), {'images': x}, **jittered)
    assert all(np.abs(out['same'] - out['images']).max((1, 2, 3)) > 1e-3)


def test_a_view_draws_by_its_name_whatever_others_there_are():
    batch = {'images': images(8), 'second': images(8, seed=1), 'third': images(8)}
    views = {name: view(flip=0.5, colors=JITTER) for name in batch}
    every = seen(keys(8), batch, **views)
    for name in batch:
        alone = seen(keys(8), batch, **{name: views[name]})
        np.testing.assert_array_equal(alone[name], every[name])
    assert np.abs(every['images'] - every['third']).max() > 0.01


def test_draws_belong_to_the_example_not_to_the_batch():
    x, k = images(8, (9, 9)), keys(8)
    colors = Colors(0.4, 0.4, 0.4, 0.1, 0.8, 0.2, 0.2, 0.5)
    views = {'images': view(flip=0.5, colors=colors)}
    whole = jax.jit(lambda k, x: seen(k, {'images': x}, **views)['images'])(k, x)
    halves = [seen(k[s], {'images': x[s]}, **views)['images'] for s in (np.s_[:4], np.s_[4:])]
    np.testing.assert_allclose(whole, np.concatenate(halves), atol=1e-5)
    assert len({float(v) for v in whole.mean((1, 2, 3))}) == 8


def test_normalize_and_back():
    x = np.random.default_rng(0).random((2, 3, 4, 3), np.float32)
    mean, std = (0.1, 0.2, 0.3), (0.5, 0.6, 0.7)
    out = augment.normalize(x, mean=mean, std=std)
    np.testing.assert_allclose(out, (x - np.array(mean)) / np.array(std), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(augment.denormalize(out, mean=mean, std=std), x, atol=1e-6)
