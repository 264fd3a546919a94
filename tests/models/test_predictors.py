"""I-JEPA's predictor against the same computation in NumPy, one block and one image at a time."""

import jax
import numpy as np
import pytest

from mim_jax.models.positions import sincos_table
from mim_jax.models.predictors import Predictor, QueryDecoder
from tests.models import reference

PREDICTOR = Predictor(width=16, depth=2, heads=2)
VISIBLE = np.array([[5, 0, 2], [1, 3, 4]])
TARGETS = np.array([[[1, 4, 1], [3, 1, 3]], [[0, 5, 0], [2, 0, 2]]])
COUNTED = np.array([True, True, False])


def test_each_block_is_predicted_from_the_context_alone():
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 3, 8)).astype('f')
    given = {'grid': (2, 3)}
    shapes = jax.eval_shape(
        lambda: PREDICTOR.init(jax.random.key(0), tokens, features=5, groups=2, **given)
    )
    variables = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype('f'), shapes)
    given |= {'visible': VISIBLE, 'targets': TARGETS, 'counted': COUNTED, 'group': 1}
    found = jax.jit(lambda x: PREDICTOR.apply(variables, x, **given))(tokens)
    assert found.shape == (2, 2, 3, 5) and found.dtype == np.float32

    params = jax.tree.map(np.float64, variables['params'])
    positions = np.float64(sincos_table((2, 3), 16).reshape(6, 16))
    for image in range(2):
        context = reference.linear(np.float64(tokens[image]), params['embed'])
        context = context + positions[VISIBLE[image]]
        for number, places in enumerate(TARGETS[image]):
            asked = params['mask_token'][1] + positions[places[COUNTED]]
            x = np.concatenate([context, asked])
            for layer in range(2):
                own = jax.tree.map(lambda p: p[layer], params['blocks'])  # noqa: B023
                x = reference.block(x, own)[0]
            x = reference.linear(reference.norm(x[3:], params['norm']), params['predict'])
            np.testing.assert_allclose(found[image, number][COUNTED], x, atol=1e-4)


def test_mask_tokens_may_start_at_zero():
    tokens = jax.ShapeDtypeStruct((1, 1, 8), 'float32')
    given = {'grid': (2, 3), 'features': 5, 'groups': 2}
    for start, least in (('zeros', 0), ('normal', 1e-4)):
        predictor = Predictor(16, 1, 2, mask_token_initialization=start)
        params = predictor.init(jax.random.key(0), tokens, **given)['params']
        assert params['mask_token'].shape == (2, 16)
        assert (np.abs(params['mask_token']).max() > 0) == (least > 0)
    with pytest.raises(ValueError, match='width 18 is not divisible'):
        Predictor(width=18, heads=2)


@pytest.mark.parametrize('cue', ['visible', 'none'])
def test_queries_at_hidden_places(cue):
    decoder = QueryDecoder(width=16, depth=2, heads=2, cue=cue)
    rng = np.random.default_rng(0)
    tokens, class_token = (rng.normal(size=size).astype('f') for size in ((2, 2, 8), (2, 8)))
    visible, hidden = np.array([[5, 0], [1, 3]]), np.array([[1, 2, 4], [0, 4, 5]])
    given = {'grid': (2, 3)}
    shapes = jax.eval_shape(
        lambda: decoder.init(jax.random.key(0), tokens, features=5, **given)['params']
    )
    params = jax.tree.map(lambda s: rng.normal(0, 0.3, s.shape).astype('f'), shapes)
    given |= {'visible': visible, 'hidden': hidden, 'class_token': class_token}
    found = jax.jit(lambda x: decoder.apply({'params': params}, x, **given))(tokens)

    params = jax.tree.map(np.float64, params)
    table = np.float64(sincos_table((2, 3), 16).reshape(6, 16))
    for image in range(2):
        seen = reference.linear(np.float64(tokens[image]), params['embed'])
        queries = [params['class_token']]
        for place in hidden[image]:
            query = params['mask_token']
            if cue == 'visible':
                near = reference.softmax(table[visible[image]] @ table[place] / 4)
                query = query + near @ seen
            queries.append(query + table[place])
        of_class = reference.linear(np.float64(class_token[image]), params['embed'])
        memory = np.concatenate([of_class[None], seen + table[visible[image]]])
        x = np.stack(queries)
        for layer in range(2):
            own = jax.tree.map(lambda p: p[layer], params['blocks'])  # noqa: B023
            x = reference.cross_block(x, memory, own)
        x = reference.linear(reference.norm(x[1:], params['norm']), params['predict'])
        np.testing.assert_allclose(found[image], x, atol=1e-4)
