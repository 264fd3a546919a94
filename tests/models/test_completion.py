"""The decoder of some patches: where all are seen or asked for, it is MAE's."""

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.models import MAEDecoder
from mim_jax.models.completion import CompletionDecoder


def test_where_no_patch_is_left_out_it_is_maes_decoder_on_normed_tokens():
    rng = np.random.default_rng(0)
    config = MAEDecoder(width=8, depth=1, heads=2)
    tokens, summary = rng.normal(size=(2, 3, 6)).astype(np.float32), rng.normal(size=(2, 6))
    places = np.array([[5, 0, 2, 1, 4, 3], [1, 3, 4, 2, 0, 5]])
    given = {'seen': places[:, :3], 'asked': places[:, 3:], 'grid': (2, 3)}
    decoder = CompletionDecoder(width=8, depth=1, heads=2)
    key = jax.random.key(0)
    shapes = jax.eval_shape(lambda: decoder.init(key, tokens, grid=(2, 3)))['params']
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype(s.dtype), shapes)
    found = jax.jit(lambda: decoder.apply({'params': params}, tokens, summary, **given))()
    assert found.shape == (2, 6, 8) and found.dtype == np.float32
    norm_in = params['norm_in']
    normed = tokens - tokens.mean(axis=-1, keepdims=True)
    normed /= np.sqrt((normed**2).mean(axis=-1, keepdims=True) + 1e-6)
    same = {name: params[name] for name in ('embed', 'mask_token', 'blocks', 'norm')}
    same['predict'] = {'kernel': jnp.eye(8), 'bias': jnp.zeros(8)}
    whole = jax.jit(
        lambda x: config.apply(
            {'params': same},
            x,
            visible_ids=jnp.asarray(places[:, :3]),
            grid=(2, 3),
            features=8,
            class_token=jnp.asarray(summary, jnp.float32),
        )
    )(normed * norm_in['scale'] + norm_in['bias'])
    expected = np.take_along_axis(np.asarray(whole), places[..., None], axis=1)
    np.testing.assert_allclose(found, expected, atol=1e-4)
