"""CAE against a plain NumPy loop; regressor and decoder have their own in tests/models."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import Colors, image_fields
from mim_jax.errors import UserError
from mim_jax.models.regressor import LatentRegressor, PlacedBlocks
from mim_jax.morphing import GROUPINGS
from mim_jax.optimizers import make_schedule
from mim_jax.targets.tokenizer import TOKENIZERS

CONFIG = Path(__file__).parent.parent.parent / 'configs' / 'cae.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(5), 3)}
TINY = dict(patch_size=(8, 8), width=8, depth=1, heads=2)


def prepare(grouping='bipartite', **changes):
    config = experiment.default_config('cae')
    config.data.update(image_size=(32, 32), batch_size=3)
    config.model.update(TINY, qkv_bias='qv', layer_scale=0.1)
    config.objective.masking.update(num_masked=7, min_block=2)
    config.objective.target = configs.option(TOKENIZERS, 'vqkd', num_codes=6, code_width=4)
    config.objective.target.model.update(TINY)
    config.objective.update(regressor_depth=2, decoder_depth=1, **changes)
    config.objective.morphing.grouping = configs.option(GROUPINGS, grouping)
    objective = assembly.make_objective(experiment.from_config(config), fields=image_fields(10))
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)
    return objective, jax.tree.map(lambda s: rng.normal(0, 0.4, s.shape).astype(s.dtype), shapes)


def places_by_hand(mask):
    """Places of the visible and of the hidden patches, ascending, [3,9] and [3,7]."""
    mask = np.asarray(mask)
    return [jnp.asarray([np.flatnonzero(row == which) for row in mask]) for which in (False, True)]


def tokens_by_hand(objective, variables, mask):
    """What the networks say: decoded and foretold tokens, their aim, encodings of all patches."""
    visible, hidden = places_by_hand(mask)
    params = variables['params']
    seen = objective.encode(params, IMAGES, visible=visible).tokens
    aim = objective.encode(params, IMAGES, visible=hidden).tokens
    foretold = LatentRegressor(objective.encoder, (4, 4), 2).apply(
        {'params': params['regressor']}, seen, visible_ids=visible, hidden_ids=hidden
    )
    decoder = PlacedBlocks(objective.encoder, (4, 4), 1)
    decoded = decoder.apply({'params': params['decoder']}, foretold, hidden)
    return decoded, foretold, aim, objective.targets(variables, IMAGES)


def means(tokens, groups):
    return np.stack([tokens[groups == group].mean(axis=0) for group in groups])


@pytest.mark.parametrize('morphed', [False, pytest.param(True, marks=pytest.mark.slow)])
def test_the_loss(morphed):
    merged = {'schedule': 'constant', 'num_merged': 4, 'num_steps': 2} if morphed else {}
    objective, variables = prepare(alignment_weight=0.7, morphing=merged)
    mask = np.asarray(objective.mask(variables, BATCH, 0))
    assert mask.sum(axis=1).tolist() == [7, 7, 7]

    @jax.jit
    def found(variables):
        loss = objective.loss(variables, BATCH, jax.random.key(0), 0)
        return loss, tokens_by_hand(objective, variables, mask)

    (loss, metrics, state), tokens = jax.device_get(found(variables))
    assert state == {}
    head = jax.tree.map(np.float64, variables['params']['head']['linear'])
    codebook = np.float64(variables['teacher']['codes'])
    entropies, squares, hits = [], [], []
    *tokens, encodings = (np.float64(x) for x in tokens)
    hidden = np.asarray(places_by_hand(mask)[1])
    encodings = np.stack([encodings[image][hidden[image]] for image in range(3)])
    groups = np.tile(np.arange(7), (3, 1))
    if morphed:
        key = jax.random.split(jax.random.key(0), 1)[0]
        groups = np.asarray(objective.morphing.groups(key, jnp.float32(encodings)))
        assert all(len(np.unique(row)) == 3 for row in groups)
    for image in range(3):
        decoded, foretold, aim, encoding = (
            means(x[image], groups[image]) for x in (*tokens, encodings)
        )
        for token in range(7):
            code = int(np.argmax(codebook @ encoding[token]))
            logits = decoded[token] @ head['kernel'] + head['bias']
            entropies.append(np.log(np.exp(logits).sum()) - logits[code])
            hits.append(np.argmax(logits) == code)
            squares += ((foretold[token] - aim[token]) ** 2).tolist()
    np.testing.assert_allclose(metrics['code_loss'], np.mean(entropies), rtol=1e-4)
    np.testing.assert_allclose(metrics['alignment_loss'], np.mean(squares), rtol=1e-4)
    np.testing.assert_allclose(metrics['accuracy'], np.mean(hits), atol=1e-6)
    np.testing.assert_allclose(loss, np.mean(entropies) + 0.7 * np.mean(squares), rtol=1e-4)


@pytest.mark.slow
def test_the_aim_has_no_gradient():
    objective, variables = prepare()
    mask = objective.mask(variables, BATCH, 0)
    *_, aim, _ = tokens_by_hand(objective, variables, mask)

    def alignment(params, aim):
        found = tokens_by_hand(objective, {**variables, 'params': params}, mask)
        return ((found[1] - (found[2] if aim is None else aim)) ** 2).mean()

    def own(params):
        metrics = objective.loss({**variables, 'params': params}, BATCH, jax.random.key(0), 0)[1]
        return metrics['alignment_loss']

    params = variables['params']
    found, fixed, through = (
        jax.jit(jax.grad(f))(params)['encoder']
        for f in (own, lambda p: alignment(p, aim), lambda p: alignment(p, None))
    )
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), found, fixed)
    differ = jax.tree.map(lambda x, y: np.abs(x - y).max(), fixed, through)
    assert max(jax.tree.leaves(differ)) > 1e-3


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate = make_schedule(run.optimizer, clock)
    assert (run.data.batch_size, clock.total_steps) == (2048, 800 * 625)
    np.testing.assert_allclose(rate(20 * 625), 1.5e-3, rtol=1e-5)
    np.testing.assert_allclose([rate(0), rate(clock.total_steps)], [0, 1e-5], atol=1e-9)
    optimizer, model, objective = run.optimizer, run.model, run.objective
    assert (optimizer.beta1, optimizer.beta2, optimizer.weight_decay) == (0.9, 0.999, 0.05)
    assert optimizer.clip_norm == 3
    assert set(optimizer.decay_also) == {'class_token', 'mask_token'}
    assert (model.drop_path, model.layer_scale, model.qkv_bias) == (0.1, 0.1, 'qv')
    assert (model.position, model.relative_position) == ('sincos', 'none')
    assert (objective.masking.num_masked, objective.masking.min_block) == (98, 16)
    depths = objective.regressor_depth, objective.decoder_depth, objective.alignment_weight
    assert depths == (4, 4, 2)
    target = objective.target
    assert (target.num_codes, target.width, target.blocks) == (8192, 256, 2)
    assert run.data.crop.scale == (0.08, 1.0) and run.data.colors == Colors()


def test_groups_of_the_whole_grid_are_refused():
    with pytest.raises(UserError, match="'superpixels' is formed on the whole grid"):
        prepare('superpixels', morphing={'schedule': 'random'})
