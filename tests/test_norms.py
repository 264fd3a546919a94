import jax
import jax.numpy as jnp
import numpy as np

from mim_jax import norms

RNG = np.random.default_rng(0)
PARAMS = {
    'encoder': {
        'blocks': {'fc': RNG.normal(size=(3, 4, 5)), 'bias': RNG.normal(size=(3, 4))},
        'patch_embed': {'kernel': RNG.normal(size=(6, 2))},
        'mask_token': RNG.normal(size=2),
    },
    'decoder': {'blocks': {'fc': RNG.normal(size=(2, 3))}},
    'head': np.zeros((2, 2)),
}
PARAMS = jax.tree.map(lambda x: x.astype(np.float32), PARAMS)


def by_hand(*arrays):
    return float(np.linalg.norm(np.concatenate([np.ravel(a) for a in arrays])))


def test_norms_of_every_block_and_part():
    blocks, encoder = PARAMS['encoder']['blocks'], PARAMS['encoder']
    expected = {
        'decoder': by_hand(PARAMS['decoder']['blocks']['fc']),
        **{f'block_0{i + 1}': by_hand(blocks['fc'][i], blocks['bias'][i]) for i in range(3)},
        'encoder': by_hand(encoder['patch_embed']['kernel'], encoder['mask_token']),
        'head': 0.0,
    }
    found = dict(zip(norms.names(PARAMS), norms.norms(PARAMS), strict=True))
    assert set(found) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6)
    assert norms.names(jax.eval_shape(lambda: PARAMS)) == norms.names(PARAMS)


def test_ratios_and_a_part_of_zeros():
    updates = jax.tree.map(lambda x: 0.25 * x + (x == 0), PARAMS)
    found = dict(zip(norms.names(PARAMS), norms.ratios(updates, PARAMS), strict=True))
    assert found.pop('head') == 0
    np.testing.assert_allclose(list(found.values()), 0.25, rtol=1e-6)


def test_half_precision_is_added_up_in_float32():
    many = {'head': jnp.full((1000,), 0.1, jnp.bfloat16)}
    assert norms.norms(many).dtype == jnp.float32
    np.testing.assert_allclose(norms.norms(many), 1000**0.5 * float(jnp.bfloat16(0.1)), rtol=1e-5)
