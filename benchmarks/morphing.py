"""Time of grouping and morphing: the groupings beside each other, and how cost grows.

    python benchmarks/morphing.py
    python benchmarks/morphing.py --tokens=196 --widths=512,768 --steps=1,7,14 --batch=64

`matrix` is `mim_jax.morphing.bipartite_groups` (the exact matrix of inner products), `features` the
same with `exact=False` (the tokens in float32), `kernel` with `kernel='pallas'` (the exact form in
one kernel, where it can run); each is one compilation for all schedules. `peer` is the usual way:
shapes that shrink from step to step, so that every schedule is compiled anew (column `compile`).
Half of the tokens are merged. `same` is the share of images in which the form before it makes the
groups of `matrix`: near-ties go either way in `features`, never in `kernel` (`agreement.py` tries
more schedules). A second list has the other groupings, the averages (`morph`) with and without
their gradient, and all that morphing adds to a training step.
"""

import argparse
import functools
import time
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import UserError
from mim_jax.keys import per_example
from mim_jax.morphing import GROUPINGS, Morphing, bipartite_groups, merges_per_step, morph
from mim_jax.morphing import matching as matching_rule
from mim_jax.morphing.bipartite import Bipartite

SECONDS = 2.0  # of repetitions of one function, after a call that compiles
BATCHES = {64: 8, 196: 8, 576: 4, 1024: 2, 4096: 1}


def shrinking_groups(tokens, *, tokens_per_step, num_steps):
    """Bipartite matching, first token protected, for one schedule of Python integers."""
    batch, num_tokens, _ = tokens.shape
    sums, sizes = tokens, jnp.ones((batch, num_tokens))
    groups = jnp.broadcast_to(jnp.arange(num_tokens), (batch, num_tokens))
    for _ in range(num_steps):
        live = sums.shape[1]
        merges = min(tokens_per_step, (live - 1) // 2)
        features = sums / sizes[..., None]
        unit = features / jnp.linalg.norm(features, axis=-1, keepdims=True)
        similarity = jnp.einsum('bad,bcd->bac', unit[:, 0::2], unit[:, 1::2], precision='highest')
        best, partner = similarity.max(-1).at[:, 0].set(-jnp.inf), similarity.argmax(-1)
        order = jnp.argsort(-best, axis=-1)
        kept = (live + 1) // 2 - merges
        stay = jnp.sort(order[:, merges:], axis=-1)
        row = jnp.arange(batch)[:, None]
        position = jnp.zeros((batch, live), jnp.int32)
        position = position.at[:, 1::2].set(kept + jnp.arange(live // 2))
        position = position.at[row, 2 * stay].set(jnp.arange(kept))
        joins = order[:, :merges]
        position = position.at[row, 2 * joins].set(kept + jnp.take_along_axis(partner, joins, 1))
        sums = jnp.zeros((batch, live - merges, sums.shape[2])).at[row, position].add(sums)
        sizes = jnp.zeros((batch, live - merges)).at[row, position].add(sizes)
        groups = jnp.take_along_axis(position, groups, axis=1)
    return groups


def milliseconds(function, *arguments, most=10):
    """Least wall and least CPU time of repeated calls after one that compiles."""
    jax.block_until_ready(function(*arguments))
    walls, cpus = [], []
    while len(walls) < most and sum(walls) < 1e3 * SECONDS:
        wall, cpu = time.perf_counter(), time.process_time()
        jax.block_until_ready(function(*arguments))
        walls.append(1e3 * (time.perf_counter() - wall))
        cpus.append(1e3 * (time.process_time() - cpu))
    return f'{min(walls):.2f} ({min(cpus):.0f})'


def example(batch, num_tokens, width):
    """Like a teacher's features: a large part that all share, some of a token's own."""
    shape = (batch, num_tokens, width)
    own, common = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
    return jnp.asarray(own + common[:, :1])


def row(cells):
    print(
        ''.join(f'{x:>6}' for x in cells[:4]) + ''.join(f'{x:>18}' for x in cells[4:]), flush=True
    )


def matching(tokens, steps, *, peer):
    """Cells of one row of the first table."""
    _, num_tokens, _ = tokens.shape
    per_step = merges_per_step(num_tokens // 2, steps, num_tokens=num_tokens)
    schedule = jnp.int32(per_step), jnp.int32(steps)

    def matrix(tokens, **option):
        return bipartite_groups(tokens, *schedule, protect_first=True, **{'kernel': 'xla'} | option)

    cells = [milliseconds(matrix, tokens)]
    for option in ({'exact': False}, {'kernel': 'pallas'}):
        form = functools.partial(matrix, **option)
        try:
            same = np.mean(np.all(matrix(tokens) == form(tokens), axis=1))
            cells += [milliseconds(form, tokens), f'{same:.0%}']
        except UserError:  # not on this device, or not for as many tokens
            cells += ['', '']
    if not peer:
        return [*cells, '', '']
    start = time.perf_counter()
    compiled = (
        jax.jit(lambda x: shrinking_groups(x, tokens_per_step=per_step, num_steps=steps))
        .lower(tokens)
        .compile()
    )
    compilation = 1e3 * (time.perf_counter() - start)
    return [*cells, milliseconds(compiled, tokens), f'{compilation:.0f}']


def other_groupings(tokens):
    """Times of the groupings that look once at all tokens or at the image, N a square."""
    batch, num_tokens, _ = tokens.shape
    side = round(num_tokens**0.5)
    images = jax.random.uniform(jax.random.key(0), (batch, 16 * side, 16 * side, 3))
    given = {
        'keys': per_example(jax.random.key(1), batch),
        'images': images,
        'grid': (side, side),
    }
    schedule = jnp.int32(num_tokens // 2), jnp.int32(1)
    times = {}
    for name, grouping in GROUPINGS.items():
        if name != 'layerwise':  # part of the teacher's own pass
            form = jax.jit(functools.partial(grouping(), **given))
            times[name] = milliseconds(form, tokens, schedule)
    return times


def masked_loop(condition, body, start):
    """Like `lax.while_loop`, but always the most steps there may be; those not asked for do
    nothing. Its trip count is known to the compiler.
    """

    def step(_, carry):
        go_on, new = condition(carry), body(carry)
        return jax.tree.map(lambda new, old: jnp.where(go_on, new, old), new, carry)

    return jax.lax.fori_loop(0, Morphing().max_steps, step, start)


def training_part(batch, morphing):
    """Wall and CPU milliseconds of all that morphing adds to a training step of DTM, ViT-B/16: the
    grouping, averages and gradient of two random draws; mean over 40 steps.
    """

    def loss(prediction, target, key):
        pairs = morphing.pairs(key, prediction, target)
        return sum(jnp.mean(jnp.square(p - t)) for p, t in pairs)

    step = jax.jit(jax.grad(loss))
    prediction, target = jax.random.normal(jax.random.key(0), (2, batch, 196, 512))
    keys = jax.random.split(jax.random.key(1), 40)
    jax.block_until_ready(step(prediction, target, keys[0]))
    wall, cpu = time.perf_counter(), time.process_time()
    for key in keys:
        jax.block_until_ready(step(prediction, target, key))
    return 25 * (time.perf_counter() - wall), 25 * (time.process_time() - cpu)


def integers(text):
    return [int(part) for part in text.split(',')]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, help='images (default: 8, fewer for many tokens)')
    parser.add_argument('--tokens', type=integers, default=[64, 196, 576, 1024, 4096])
    parser.add_argument('--widths', type=integers, default=[128, 512])
    parser.add_argument('--steps', type=integers, default=[1, 7, 14])
    parser.add_argument(
        '--peer', type=integers, default=[196], help='numbers of tokens with a peer'
    )
    options = parser.parse_args()

    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}), jax {jax.__version__}')
    print('float32, half of the tokens merged; ms on the clock (of CPU time), each the least')
    row(['B', 'N', 'D', 'k', 'matrix', 'features', 'same', 'kernel', 'same', 'peer', 'compile'])
    for num_tokens in options.tokens:
        batch = options.batch or BATCHES.get(num_tokens, 1)
        for width in options.widths:
            tokens = example(batch, num_tokens, width)
            for steps in options.steps:
                cells = matching(tokens, steps, peer=num_tokens in options.peer)
                row([batch, num_tokens, width, steps, *cells])

    batch = options.batch or 8
    tokens = example(batch, 196, 512)
    print(f'batch {batch}, N 196, D 512')
    for name, text in other_groupings(tokens).items():
        print(f'{name:>16}{text:>18}')
    groups = bipartite_groups(tokens, 14, 7, protect_first=True)
    gradient = jax.jit(jax.grad(lambda x, groups: jnp.sum(jnp.square(morph(x, groups)))))
    print(f'{"morph":>16}{milliseconds(morph, tokens, groups):>18}')
    print(f'{"gradient":>16}{milliseconds(gradient, tokens, groups):>18}')
    print('in a training step (two random draws, N 196, D 512), ms on the clock and of CPU time:')
    forms = {
        'matrix': {'kernel': 'xla'},
        'features': {'exact': False},
        'kernel': {'kernel': 'pallas'},
    }
    for form, options in forms.items():
        morphing = Morphing(grouping=Bipartite(**options))
        try:
            wall, cpu = training_part(batch, morphing)
        except UserError as error:
            print(f'{form}: {error}')
            continue
        print(f'{form}, as many steps as drawn: {wall:.2f} ({cpu:.2f})', flush=True)
        if form == 'kernel':
            continue
        with mock.patch.object(matching_rule.lax, 'while_loop', masked_loop):
            jax.clear_caches()
            wall, cpu = training_part(batch, morphing)
        jax.clear_caches()
        print(f'{form}, always {morphing.max_steps} masked steps: {wall:.2f} ({cpu:.2f})')


if __name__ == '__main__':
    main()
