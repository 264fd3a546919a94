"""MOCA against a plain NumPy loop: two rounds of two views, words, bags, generated classifiers."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import assembly, experiment, keys
from mim_jax import config as configs
from mim_jax.data import Colors, image_fields
from mim_jax.errors import UserError
from mim_jax.optimizers import make_decay_schedule, make_schedule
from mim_jax.parameter_rules import constant_rates

CONFIG = Path(__file__).parents[2] / 'configs' / 'moca.py'
IMAGES = jax.random.uniform(jax.random.key(1), (3, 32, 32, 3))
BATCH = {
    'images': IMAGES,
    'second': jax.random.uniform(jax.random.key(6), IMAGES.shape),
    'keys': keys.per_example(jax.random.key(5), 3),
}
KEY = jax.random.key(4)
N, WORDS = 16, 8
FIRST, SECOND, ASKED = 7, 4, 3  # of 16 patches: 0.45, 0.25, 0.2


def make(**changes):
    config = experiment.default_config('moca')
    config.data.update(image_size=(32, 32), batch_size=3)
    config.model.update(patch_size=(8, 8), width=16, depth=2, heads=2)
    config.objective.update(dense_layer=1, bag_weight=0.7, word_weight=0.3)
    config.objective.decoder.update(width=8, depth=1, heads=2)
    config.objective.words.update(num_words=WORDS, num_new=2, border=1)
    config.objective.update(changes)
    config.train.total_steps = 1
    config.train.ema.decay = 0.9
    return assembly.make_objective(experiment.from_config(config), fields=image_fields(10))


@pytest.fixture(scope='module')
def prepared():
    """An objective and its variables: the average is that of another network."""
    objective = make()
    shapes = jax.eval_shape(objective.init, jax.random.key(0), IMAGES)
    rng = np.random.default_rng(0)

    def drawn(tree):
        return jax.tree.map(lambda s: jnp.asarray(rng.normal(0, 0.3, s.shape), s.dtype), tree)

    words = rng.normal(size=(WORDS, 16)).astype(np.float32)
    words /= np.linalg.norm(words, axis=1, keepdims=True)
    book = {'words': words, 'oldest': np.int32(6), 'spread': np.float32(0.4)}
    variables = {'params': drawn(shapes['params']), 'ema': drawn(shapes['params'])}
    return objective, variables | {'state': {'wordbook': book}}


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rounds_by_hand(view):
    """[(seen, asked), (seen, asked)] places [3,...] of a view."""
    orders = [
        np.argsort(np.asarray(jax.random.uniform(key, (N,))))
        for key in keys.named(BATCH['keys'], f'mask {view}')
    ]
    orders = np.stack(orders)
    asked = orders[:, FIRST : FIRST + ASKED]
    rest = orders[:, FIRST + ASKED :]
    return [(orders[:, :FIRST], asked), (rest[:, :SECOND], asked)]


def generated(params, words):
    """Linear, batch norm over the words, ReLU, linear, and the words beside it; unit length."""
    params = jax.tree.map(np.float64, params)
    x = words @ params['fc1']['kernel']
    assert set(params['fc1']) == {'kernel'}
    x = (x - x.mean(axis=0)) / np.sqrt(x.var(axis=0) + 1e-5)
    x = np.maximum(x * params['norm']['scale'] + params['norm']['bias'], 0)
    x = x @ params['fc2']['kernel'] + params['fc2']['bias']
    if 'skip' in params:
        words = words @ params['skip']['kernel'] + params['skip']['bias']
    return unit(x + words)


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def divergence(target, scores):
    return (target * (np.log(target) - np.log(softmax(scores)))).sum(axis=-1)


@pytest.fixture(scope='module')
def by_hand(prepared):
    """Losses, and what there is to make a word of: tokens and spreads of both views."""
    objective, variables = prepared
    params, book = variables['params'], variables['state']['wordbook']
    words = np.float64(book['words'])
    weights = {n: generated(params[f'{n}_generator'], words) for n in ('bag', 'word')}
    teach = jax.jit(lambda view: objective.encode(variables['ema'], view).tokens)
    student = jax.jit(lambda *given: objective.student(params, *given))
    tokens, codes, bags, spreads = [], [], [], []
    for view in ('images', 'second'):
        tokens.append(np.float64(teach(BATCH[view])))
        cosines = unit(tokens[-1]) @ words.T
        codes.append(softmax(10 / 0.4 * cosines))
        spreads.append((cosines.max(axis=-1) - cosines.mean(axis=-1)).mean())
        inner = [5, 6, 9, 10]  # of a grid of 4x4, without its border
        bags.append(codes[-1][:, inner].mean(axis=1))
    bag_losses, decoded = [], {}
    for i, view in enumerate(('images', 'second')):
        for j, (seen, asked) in enumerate(rounds_by_hand(view)):
            mean, features = (np.float64(x) for x in student(BATCH[view], seen, asked))
            bag_losses.append(divergence(bags[1 - i], 3 * mean @ weights['bag'].T).mean())
            target = np.stack(
                [
                    [codes[i][image, place] for place in (*seen[image], *asked[image])]
                    for image in range(3)
                ]
            )
            decoded[f'{view} {j}'] = features, target
    return 2 * np.mean(bag_losses), decoded, weights['word'], tokens, spreads


def word_loss(decoded, weights, morphed=lambda name, features, target: (features, target)):
    losses, count = [], 0
    for name, (features, target) in decoded.items():
        features, target = morphed(name, features, target)
        found = divergence(target, 3 * features @ weights.T)
        count += found.size
        losses.append(found.mean())
    assert count == 2 * 3 * (FIRST + SECOND + 2 * ASKED)
    return 2 * np.mean(losses)


@pytest.fixture(scope='module')
def found(prepared):
    objective, variables = prepared
    return jax.jit(objective.loss)(variables, BATCH, KEY, 0)


def test_the_loss(found, by_hand):
    loss, metrics, _ = found
    bag, decoded, weights, _, _ = by_hand
    word = word_loss(decoded, weights)
    np.testing.assert_allclose(metrics['bag_loss'], bag, rtol=1e-4)
    np.testing.assert_allclose(metrics['word_loss'], word, rtol=1e-4)
    np.testing.assert_allclose(loss, 0.7 * bag + 0.3 * word, rtol=1e-4)


def test_the_oldest_words_become_inner_tokens_of_different_images_of_one_view(
    found, by_hand, prepared
):
    before, after = prepared[1]['state']['wordbook'], found[2]['wordbook']
    *_, tokens, spreads = by_hand
    np.testing.assert_array_equal(after['words'][:6], before['words'][:6])
    assert after['oldest'] == 0
    spread = 0.4
    for view in spreads:
        spread = 0.99 * spread + 0.01 * view
    np.testing.assert_allclose(after['spread'], spread, rtol=1e-5)
    places = []
    for word in np.asarray(after['words'][6:]):
        for view, image, place in np.ndindex(2, 3, N):
            if np.abs(unit(tokens[view][image, place]) - word).max() < 1e-4:
                places.append((view, image, place))
    assert len(places) == 2 and places[0][0] == places[1][0] and places[0][1] != places[1][1]
    assert {place for _, _, place in places} <= {5, 6, 9, 10}


def test_what_is_seen_and_asked_for(prepared):
    objective, variables = prepared
    for view in ('images', 'second'):
        for mine, theirs in zip(objective.rounds(BATCH, view), rounds_by_hand(view), strict=True):
            for x, y in zip(mine, theirs, strict=True):
                np.testing.assert_array_equal(x, y)
    mask = np.asarray(objective.mask(variables, BATCH, 0))
    for row, (seen, _) in zip(mask, zip(*rounds_by_hand('images')[0], strict=True), strict=True):
        assert set(np.flatnonzero(~row)) == set(seen)


@pytest.mark.slow
def test_the_decoder_knows_what_is_seen_by_its_places_alone(prepared):
    """In whatever order seen and asked places come, a place has one feature; blocks mix them."""
    objective, variables = prepared
    seen, asked = rounds_by_hand('images')[0]
    student = jax.jit(lambda *given: objective.student(variables['params'], IMAGES, *given))
    mean, features = student(seen, asked)
    other_mean, turned = student(seen[:, ::-1], asked[:, ::-1])
    np.testing.assert_allclose(other_mean, mean, atol=1e-5)
    np.testing.assert_allclose(turned[:, :FIRST], features[:, :FIRST][:, ::-1], atol=1e-4)
    np.testing.assert_allclose(turned[:, FIRST:], features[:, FIRST:][:, ::-1], atol=1e-4)
    moved = student(seen, np.roll(asked, 1, axis=0))[1]
    assert np.abs(moved - features).max() > 1e-3


@pytest.mark.slow
def test_the_patches_of_the_decoder_are_morphed_by_their_words(prepared, by_hand):
    morphed = make(morphing={'schedule': 'constant', 'num_merged': 3, 'num_steps': 1})
    bag, decoded, weights, _, _ = by_hand

    def average(name, *tokens):
        draw = jax.random.split(keys.named(KEY, name), 1)[0]
        groups = np.asarray(morphed.morphing.groups(draw, np.float32(tokens[1])))
        assert all(len(np.unique(row)) == groups.shape[1] - 3 for row in groups)
        return [
            np.stack([[x[i][ids == g].mean(axis=0) for g in ids] for i, ids in enumerate(groups)])
            for x in tokens
        ]

    _, metrics, _ = jax.jit(morphed.loss)(prepared[1], BATCH, KEY, 0)
    np.testing.assert_allclose(metrics['bag_loss'], bag, rtol=1e-4)
    np.testing.assert_allclose(
        metrics['word_loss'], word_loss(decoded, weights, average), rtol=1e-4
    )
    sheets = jax.eval_shape(morphed.pictures, prepared[1], BATCH, KEY, 0)
    assert set(sheets) == {'words', 'groups'}


@pytest.mark.slow
def test_the_average_gets_no_gradient_and_every_part_of_the_network_does(prepared):
    objective, variables = prepared

    def loss(params, ema):
        return objective.loss({**variables, 'params': params, 'ema': ema}, BATCH, KEY, 0)[0]

    def size(tree):
        return max(np.abs(x).max() for x in jax.tree.leaves(tree))

    params, ema = jax.jit(jax.grad(loss, argnums=(0, 1)))(variables['params'], variables['ema'])
    assert size(ema) == 0 and min(size(part) for part in params.values()) > 1e-4


def test_the_large_config_is_the_released_recipe():
    run = experiment.from_config(configs.load(str(CONFIG)))
    clock = assembly.make_clock(run, 1281167)
    rate, decay = make_schedule(run.optimizer, clock), run.train.ema.decays(clock)
    assert (run.data.batch_size, run.train.total_epochs) == (2048, 200)
    warmup = clock.steps(run.optimizer, 'warmup', path='optimizer')
    np.testing.assert_allclose(warmup / clock.total_steps, 30 / 200, rtol=1e-3)
    np.testing.assert_allclose(rate(warmup), 1.5e-4 * 2048 / 256, rtol=1e-5)
    # It would be 0 after 250 epochs: half a cosine over the 220 that follow the warm-up.
    last = 0.5 * (1 + np.cos(np.pi * 170 / 220)) * 1.2e-3
    np.testing.assert_allclose(rate(clock.total_steps), last, rtol=1e-3)
    np.testing.assert_allclose([decay(0), decay(clock.total_steps)], [0.994, 1.0])
    assert run.optimizer.beta2 == 0.999
    weight_decay = make_decay_schedule(run.optimizer, clock)
    ends = [weight_decay(0), weight_decay(clock.total_steps // 2), weight_decay(clock.total_steps)]
    np.testing.assert_allclose(ends, [0.05, 0.125, 0.2], rtol=1e-4)
    bound = assembly.make_objective(run, fields=image_fields(1000), clock=clock)
    images = assembly.batch_struct(run, bound)['images']
    params = jax.eval_shape(bound.init, jax.random.key(0), images)['params']
    constant = constant_rates(params, rules=run.optimizer.constant_rates)
    assert {path.split('/')[0] for path in constant} == {'bag_generator', 'word_generator'}
    of_generators = [params['bag_generator'], params['word_generator']]
    assert len(constant) == len(jax.tree.leaves(of_generators)) and set(constant.values()) == {1e-4}
    assert run.optimizer.clip_norm == 0.1 and run.eval.use_ema
    objective, views = run.objective, run.objective.views(run.data)
    assert objective.masking.counts((14, 14)) == (88, 49, 39)
    assert (objective.words.num_words, objective.words.num_new) == (4096, 32)
    assert (objective.sharpness, objective.words.sharpness, objective.dense_layer) == (3, 10, 8)
    decoder = objective.decoder
    assert (decoder.width, decoder.depth, decoder.heads) == (512, 2, 16)
    jitter = dict(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, probability=0.8, grey=0.2)
    assert views['images'].colors == Colors(**jitter, blur=1.0)
    assert views['second'].colors == Colors(**jitter, blur=0.1, solarize=0.2)
    assert views['second'].like is None and views['second'].crop.scale == (0.2, 1.0)


@pytest.mark.parametrize(
    'changes, message',
    [
        ({'dense_layer': 3}, 'dense_layer = 3: the encoder has 2 blocks'),
        ({'words': {'border': 2}}, 'words.border = 2: of 4x4 patches none would be left'),
        ({'words': {'num_new': 3}}, 'num_words = 8 is not a multiple of num_new = 3'),
        ({'masking': {'first': 0.7}}, 'must be different ones and at least one of each'),
    ],
)
def test_impossible_options_are_one_sentence(changes, message):
    with pytest.raises(UserError, match=message) as error:
        make(**changes)
    assert '\n' not in str(error.value)
