"""Position tables against loops and closed forms."""

import jax
import numpy as np

from mim_jax.models.positions import RelativePosition, resize_table, sincos_table


def test_sincos_table_in_maes_order():
    h, w, width = 2, 3, 8
    table = sincos_table((h, w), width)
    assert table.shape == (h, w, width)
    quarter = width // 4
    for y in range(h):
        for x in range(w):
            expected = []
            for position in (x, y):
                for function in (np.sin, np.cos):
                    for i in range(quarter):
                        expected.append(function(position / 10000 ** (i / quarter)))
            np.testing.assert_allclose(table[y, x], expected, atol=1e-6)


def beit_index(h, w):
    """The flat table's row for every (query, key), written out: class token first."""
    size = (2 * h - 1) * (2 * w - 1)
    index = np.zeros((h * w + 1, h * w + 1), int)
    for i in range(h * w):
        for j in range(h * w):
            dy, dx = i // w - j // w, i % w - j % w
            index[i + 1, j + 1] = (dy + h - 1) * (2 * w - 1) + dx + w - 1
    index[0, :] = size
    index[:, 0] = size + 1
    index[0, 0] = size + 2
    return index


def test_relative_bias_is_the_flat_table_looked_up_by_offset():
    h, w, heads = 3, 4, 2
    rng = np.random.default_rng(0)
    patches = rng.normal(size=(2 * h - 1, 2 * w - 1, heads)).astype(np.float32)
    ends = rng.normal(size=(3, heads)).astype(np.float32)
    flat = np.concatenate([patches.reshape(-1, heads), ends])
    expected = flat[beit_index(h, w)].transpose(2, 0, 1)
    params = {'params': {'patches': patches, 'class_token': ends}}
    bias = RelativePosition(heads, (h, w), class_token=True).apply(params)
    np.testing.assert_array_equal(bias[0], expected)

    bare = RelativePosition(heads, (h, w)).apply({'params': {'patches': patches}})
    np.testing.assert_array_equal(bare[0], expected[:, 1:, 1:])

    visible = np.array([[7, 2, 9], [0, 11, 3]])
    chosen = RelativePosition(heads, (h, w), class_token=True).apply(params, visible)
    for b in range(2):
        rows = np.concatenate([[0], visible[b] + 1])
        np.testing.assert_array_equal(chosen[b], expected[:, rows][:, :, rows])


def test_registers_have_no_relative_bias():
    module = RelativePosition(2, (2, 2), class_token=True, num_registers=3)
    params = jax.tree.map(lambda x: x + 1.0, module.init(jax.random.key(0)))
    bias = np.asarray(module.apply(params)[0])
    assert bias.shape == (2, 8, 8)
    assert not bias[:, 1:4].any() and not bias[:, :, 1:4].any()
    assert (np.delete(np.delete(bias, [1, 2, 3], 1), [1, 2, 3], 2) == 1).all()


def test_resizing_a_table_keeps_constants_and_symmetry():
    constant = np.full((3, 5, 2), 0.7, np.float32)
    for method in ('bicubic', 'bicubic_antialias', 'bilinear'):
        np.testing.assert_allclose(resize_table(constant, (7, 4), method=method), 0.7, rtol=1e-5)
    ramp = np.arange(4, dtype=np.float32)[:, None, None] * np.ones((1, 4, 1), np.float32)
    doubled = np.asarray(resize_table(ramp, (8, 8), method='bilinear'))
    # Half-pixel centres, edges held: the positions (i + 0.5) / 2 - 0.5, clipped to [0, 3].
    expected = np.clip((np.arange(8) + 0.5) / 2 - 0.5, 0, 3)
    np.testing.assert_allclose(doubled[:, 0, 0], expected, atol=1e-6)
