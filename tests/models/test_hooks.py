"""What is done to tokens between attention and MLP, against blocks in NumPy."""

import dataclasses
import functools
import importlib.util
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax.models import ViT
from mim_jax.models.hooks import Hook, TokenDropping

_spec = importlib.util.spec_from_file_location('reference', Path(__file__).parent / 'reference.py')
reference = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference)

PLAIN = ViT(patch_size=(4, 4), width=16, depth=3, heads=2, num_registers=2)
RICH = dataclasses.replace(PLAIN, relative_position='both', layer_scale=0.3, qkv_bias='qv')
IMAGES = np.random.default_rng(0).normal(size=(2, 8, 12, 3)).astype(np.float32)  # grid (2, 3)


@functools.partial(jax.jit, static_argnums=0)
def encode(model, params, **options):
    return model.apply({'params': params}, IMAGES, **options)


@functools.cache
def params_of(model):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES))['params']
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0.05, 0.3, s.shape).astype(s.dtype), shapes)


def dropped_by_hand(model, image, counts):
    """Tokens of the patches that stay, and their places, by a loop that really removes them."""
    params = jax.tree.map(np.float64, params_of(model))
    x = reference.embed(model, params, image)
    places = list(range(6))
    for i, count in enumerate(counts):
        p = jax.tree.map(lambda leaf, i=i: leaf[i], params['blocks'])
        gone = []

        def between(x, count=count, gone=gone):
            unit = x[3:] / np.linalg.norm(x[3:], axis=1, keepdims=True)
            cosines = (unit @ unit.T).sum(axis=1) - 1
            gone += np.argsort(-cosines, kind='stable')[: min(count, len(cosines) - 1)].tolist()
            return x

        x = reference.block(x, p, between=between)[0]
        x = np.delete(x, [3 + place for place in gone], axis=0)
        places = [place for at, place in enumerate(places) if at not in gone]
    return reference.norm(x, params['final_norm']), places


@pytest.mark.parametrize('scan', [True, False])
@pytest.mark.parametrize('counts', [(0, 0, 0), (2, 0, 1), (1, 2, 9)])
def test_dropped_tokens_vanish_as_if_they_were_removed(counts, scan):
    model = dataclasses.replace(PLAIN, scan=scan)
    hook = TokenDropping(jnp.array(counts), prefix=PLAIN.prefix)
    encoded = encode(model, params_of(model), hook=hook)
    present = np.asarray(hook.present(encoded.hook_state))
    for image in range(2):
        expected, places = dropped_by_hand(model, IMAGES[image], counts)
        assert np.flatnonzero(present[image]).tolist() == places
        np.testing.assert_allclose(encoded.class_token[image], expected[0], atol=2e-4)
        np.testing.assert_allclose(encoded.tokens[image, places], expected[3:], atol=2e-4)


def test_counts_may_be_static_and_gradients_are_finite():
    params = params_of(RICH)

    def loss(params):
        hook = TokenDropping((2, 1), prefix=PLAIN.prefix)
        encoded = RICH.apply({'params': params}, IMAGES, hook=hook, attention=(3,))
        return (encoded.class_token**2).sum(), encoded.attention[3]

    gradient, attention = jax.jit(jax.grad(loss, has_aux=True))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    # What has left gets no attention.
    assert ((np.asarray(attention) == 0).sum(axis=-1) == 3).all()


def test_a_hook_may_do_anything_that_keeps_shapes():
    class Counting(Hook):
        def start(self, tokens):
            return jnp.int32(0)

        def between(self, tokens, keys, state, index):
            chex.assert_shape(keys, (2, 9, 2, 8))
            return tokens, state + index

    jax.tree_util.register_static(Counting)
    encoded = encode(PLAIN, params_of(PLAIN), hook=Counting())
    assert encoded.hook_state == 0 + 1 + 2
    np.testing.assert_allclose(encoded.tokens, encode(PLAIN, params_of(PLAIN)).tokens, atol=1e-6)
