"""Merging inside an encoder against a NumPy loop that really merges, with logarithms of sizes."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf

from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models.patches import patchify
from mim_jax.models.vit import ViT
from mim_jax.morphing import Morphing, morph
from mim_jax.morphing.layerwise import Layerwise
from mim_jax.targets import EMA, Teacher, network_tokens

MODEL = ViT(patch_size=(4, 4), width=24, depth=3, heads=3, position='learned', layer_scale=0.5)
IMAGES = np.random.default_rng(0).normal(size=(3, 16, 20, 3)).astype(np.float32)  # 20 tokens


@functools.cache
def params_of(model):
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), IMAGES))['params']
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda s: rng.normal(0.05, 0.3, s.shape).astype(s.dtype), shapes)


@functools.partial(jax.jit, static_argnums=0, static_argnames='layer')
def encode(model, images, num_merged=None, layer=None):
    return network_tokens(params_of(model), images, model=model, layer=layer, num_merged=num_merged)


def norm(x, params, eps=1e-6):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
    return x * params['scale'] + params['bias']


def softmax(x):
    x = np.exp(x - x.max(-1, keepdims=True))
    return x / x.sum(-1, keepdims=True)


def merged_by_hand(model, image, per_block):
    """Tokens [N,D] and members of each group of patches, for one image, in float64."""
    p = jax.tree.map(np.float64, params_of(model))
    x = np.float64(patchify(image[None], patch_size=model.patch_size)[0])
    x = x @ p['patch_embed']['kernel'] + p['patch_embed']['bias']
    x += p['position']['patches'].reshape(-1, model.width)
    prefix = []
    if model.class_token:
        prefix.append((p['class_token'] + p['position']['class_token'])[None])
    if model.num_registers:
        prefix.append(p['registers'])
    x = np.concatenate([*prefix, x])
    # Each token with the original places it stands for; registers (negative) stay to the end.
    first = int(model.class_token)
    places = [[i] for i in range(len(x))]
    registers = set(range(first, first + model.num_registers))
    for block in range(model.depth):
        b = jax.tree.map(lambda leaf, block=block: leaf[block], p['blocks'])
        sizes = np.array([len(members) for members in places])
        qkv = np.einsum('sd,dthk->tshk', norm(x, b['norm1']), b['attention']['qkv']['kernel'])
        q, k, v = qkv + b['attention']['qkv']['bias'][:, None]
        logits = np.einsum('qhk,shk->hqs', q, k) / np.sqrt(q.shape[-1]) + np.log(sizes)
        y = np.einsum('hqs,shk->qhk', softmax(logits), v)
        y = np.einsum('qhk,hkd->qd', y, b['attention']['out']['kernel'])
        x = x + b['layer_scale1'] * (y + b['attention']['out']['bias'])

        # Token Merging: the list without registers, even places to odd ones.
        listed = [i for i, members in enumerate(places) if not registers & set(members)]
        unit = k.mean(axis=1)[listed]
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        merges = min(per_block, (len(listed) - first) // 2)
        scores = unit[0::2] @ unit[1::2].T
        best = scores.max(axis=1)
        if first:
            best[0] = -np.inf
        order = np.argsort(-best, kind='stable')
        set_a, set_b = listed[0::2], listed[1::2]
        join = {set_a[a]: set_b[scores[a].argmax()] for a in order[:merges]}
        rest = sorted(order[merges:]) if first else order[merges:]
        total = x * sizes[:, None]
        members = [list(group) for group in places]
        for a, b_token in join.items():
            total[b_token] += total[a]
            members[b_token] += members[a]
        stay = [set_a[a] for a in rest] + set_b
        kept = [*stay[:first], *sorted(set(range(len(x))) - set(listed)), *stay[first:]]
        places = [members[i] for i in kept]
        x = np.stack([total[i] / len(members[i]) for i in kept])

        h = norm(x, b['norm2']) @ b['mlp']['fc1']['kernel'] + b['mlp']['fc1']['bias']
        h = h * (1 + erf(h / np.sqrt(2))) / 2
        x = x + b['layer_scale2'] * (h @ b['mlp']['fc2']['kernel'] + b['mlp']['fc2']['bias'])
    x = norm(x, p['final_norm'])
    skipped = first + model.num_registers
    tokens = np.empty((max(map(max, places)) + 1 - skipped, model.width))
    groups = []
    for token, group in zip(x, places, strict=True):
        patches = sorted(place - skipped for place in group if place >= skipped)
        tokens[patches] = token
        groups += [patches] if patches else []
    return tokens, groups


@pytest.mark.parametrize(
    'changes',
    [{}, {'class_token': False}, {'num_registers': 2}, {'scan': False, 'remat': 'full'}],
    ids=lambda changes: next(iter(changes), 'plain'),
)
@pytest.mark.parametrize('num_merged', [3, 9, 20])
def test_tokens_and_groups_are_those_of_real_merging(changes, num_merged):
    model = dataclasses.replace(MODEL, **changes)
    tokens, groups = encode(model, IMAGES, jnp.int32(num_merged))
    per_block = -(-num_merged // 3) if num_merged < 20 else 20 // 3
    for image in range(3):
        expected, members = merged_by_hand(model, IMAGES[image], per_block)
        # In the order of the merged list, number by number.
        found = [np.flatnonzero(groups[image] == g).tolist() for g in range(len(members))]
        assert found == members
        np.testing.assert_allclose(tokens[image], expected, atol=2e-4)


@pytest.mark.parametrize('relative_position', ['none', 'both'])
def test_merging_nothing_changes_nothing(relative_position):
    model = dataclasses.replace(MODEL, relative_position=relative_position)
    tokens, groups = encode(model, IMAGES, jnp.int32(0))
    np.testing.assert_array_equal(groups, np.broadcast_to(np.arange(20), (3, 20)))
    np.testing.assert_allclose(tokens, encode(model, IMAGES), atol=1e-5)


def test_tokens_are_spread_over_the_blocks_that_are_computed():
    found = []
    for layer in (1, 2):
        tokens, groups = encode(MODEL, IMAGES, jnp.int32(6), layer=layer)
        found.append([len(np.unique(image)) for image in groups])
        np.testing.assert_allclose(morph(tokens, groups), tokens, atol=1e-5)
    assert found == [[14] * 3, [14] * 3]


def test_relative_positions_stay_those_of_the_original_tokens():
    model = dataclasses.replace(MODEL, relative_position='both', position='none')
    tokens, groups = encode(model, IMAGES, jnp.int32(9))
    assert [len(np.unique(image)) for image in groups] == [11] * 3
    np.testing.assert_allclose(morph(tokens, groups), tokens, atol=1e-5)


def test_one_compilation_serves_every_number():
    chex.clear_trace_counter()

    @jax.jit
    @functools.partial(chex.assert_max_traces, n=1)
    def groups(num_merged):
        return network_tokens(params_of(MODEL), IMAGES, model=MODEL, num_merged=num_merged)[1]

    assert len({int(groups(jnp.int32(n)).max()) for n in (0, 3, 9, 20)}) == 4


INPUTS = Inputs((16, 20), 3, (0.5,) * 3, (0.25,) * 3)


@pytest.mark.slow
def test_a_draw_merges_as_many_tokens_as_it_says_and_gives_the_teachers_output():
    """The target of a pair is what the teacher returns, the prediction is morphed alike."""
    prediction = np.random.default_rng(2).standard_normal((3, 20, 24)).astype(np.float32)
    variables = {'teacher': params_of(MODEL)}
    images = (IMAGES - IMAGES.min()) / np.ptp(IMAGES)
    teacher = Teacher(model=MODEL, normalization='student').bind(MODEL, INPUTS)
    merged = functools.partial(teacher.merged, variables, images)
    morphing = Morphing(schedule='constant', num_merged=9, num_steps=5, grouping=Layerwise())
    plain = teacher(variables, images)
    ((student, target),) = morphing.pairs(jax.random.key(0), prediction, plain, merged=merged)
    tokens, groups = merged(jnp.int32(9))
    np.testing.assert_allclose(target, tokens, atol=1e-5)
    np.testing.assert_allclose(student, morph(prediction, groups), atol=1e-6)
    assert len(np.unique(groups[0])) == 11
    found = morphing.groups(jax.random.key(0), plain, merged=merged)
    np.testing.assert_array_equal(found, groups)
    shown, titles = morphing.examples(plain, merged=merged)
    np.testing.assert_array_equal(shown[0], groups)
    assert titles == ('9 tokens to merge in the teacher',)


def test_the_students_average_can_be_merged_as_well():
    images = (IMAGES - IMAGES.min()) / np.ptp(IMAGES)
    variables = {'ema': {'encoder': params_of(MODEL)}}
    tokens, groups = EMA(layer=2).bind(MODEL, INPUTS).merged(variables, images, jnp.int32(4))
    expected = network_tokens(
        params_of(MODEL), INPUTS.normalize(images), model=MODEL, layer=2, num_merged=jnp.int32(4)
    )
    np.testing.assert_allclose(tokens, expected[0], atol=1e-5)
    np.testing.assert_array_equal(groups, expected[1])


def test_no_gradient_flows_through_the_teacher():
    def loss(params):
        tokens, _ = network_tokens(params, IMAGES, model=MODEL, num_merged=jnp.int32(4))
        return jnp.sum(tokens**2)

    gradient = jax.grad(loss)(params_of(MODEL))
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(gradient))


def test_a_teacher_of_another_grid_is_the_users_mistake():
    teacher = Teacher(model=MODEL, input_size=(32, 40)).bind(MODEL, INPUTS)
    with pytest.raises(UserError, match="grid of 8x10 tokens is not the student's of 4x5"):
        teacher.merged({'teacher': params_of(MODEL)}, IMAGES, jnp.int32(4))


def test_without_a_network_it_is_the_users_mistake():
    with pytest.raises(UserError, match='merges tokens inside the network'):
        Morphing(grouping=Layerwise()).groups(jax.random.key(0), np.ones((1, 4, 2)))
