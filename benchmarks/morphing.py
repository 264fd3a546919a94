"""Time of grouping and morphing, beside a plain grouping on features, in one table.

    python benchmarks/morphing.py
    python benchmarks/morphing.py --batch=64 --tokens=196,256 --widths=512,768 --steps=1,7,14

`groups` is `mim_jax.morphing.bipartite_groups`: one compilation for all schedules. `features` is
the usual way: normalise the current tokens' features, multiply, merge, with shapes that shrink from
step to step, so that every schedule is compiled anew (column `compile`). `morph` averages [B, N, D]
over the groups, `gradient` includes its backward pass. Half of the tokens are merged. `same` is the
share of images for which both groupings agree: the peer compares in float32, and near-ties go
either way.
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.morphing import Morphing, bipartite_groups, morph
from mim_jax.morphing.schedules import merges_per_step


def feature_groups(tokens, *, tokens_per_step, num_steps):
    """Bipartite matching on features, first token protected, for one static schedule."""
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


def milliseconds(function, *arguments, repeats):
    """Fastest and median of `repeats` calls after one that compiles."""
    jax.block_until_ready(function(*arguments))
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        times.append(1e3 * (time.perf_counter() - start))
    return min(times), float(np.median(times))


def training_part(batch):
    """Wall and CPU milliseconds of all that morphing adds to a training step of DTM, ViT-B/16: the
    grouping, averages and gradient of two random draws; mean over 40 steps.
    """

    def loss(prediction, target, key):
        pairs = Morphing().pairs(key, prediction, target)
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
    parser.add_argument('--batch', type=int, default=8)
    parser.add_argument('--tokens', type=integers, default=[64, 196, 256, 576, 1024])
    parser.add_argument('--widths', type=integers, default=[512])
    parser.add_argument('--steps', type=integers, default=[1, 7, 14])
    parser.add_argument('--repeats', type=int, default=10)
    options = parser.parse_args()

    device = jax.devices()[0]
    print(f'{device.device_kind} ({device.platform}), jax {jax.__version__}')
    print(f'batch {options.batch}, float32, half of the tokens merged; ms: fastest (median)')
    header = ('N', 'D', 'k', 'groups', 'features', 'compile', 'morph', 'gradient', 'same')
    print(''.join(f'{name:>16}' if 3 <= i < 8 else f'{name:>6}' for i, name in enumerate(header)))
    average = jax.jit(morph)
    gradient = jax.jit(jax.grad(lambda x, groups: jnp.sum(jnp.square(morph(x, groups)))))
    for width in options.widths:
        for num_tokens in options.tokens:
            # Like a teacher's features: a large part that all share, some of a token's own.
            shape = (options.batch, num_tokens, width)
            own, common = np.random.default_rng(0).standard_normal((2, *shape), np.float32)
            tokens = jnp.asarray(own + common[:, :1])
            for steps in options.steps:
                per_step = merges_per_step(num_tokens // 2, steps, num_tokens=num_tokens)
                schedule = jnp.int32(per_step), jnp.int32(steps)

                def ours(tokens, schedule=schedule):
                    return bipartite_groups(tokens, *schedule, protect_first=True)

                def plain(tokens, per_step=per_step, steps=steps):
                    return feature_groups(tokens, tokens_per_step=per_step, num_steps=steps)

                start = time.perf_counter()
                peer = jax.jit(plain).lower(tokens).compile()
                compilation = 1e3 * (time.perf_counter() - start)
                groups = ours(tokens)
                same = np.mean(np.all(groups == peer(tokens), axis=1))
                cells = [
                    milliseconds(ours, tokens, repeats=options.repeats),
                    milliseconds(peer, tokens, repeats=options.repeats),
                    compilation,
                    milliseconds(average, tokens, groups, repeats=options.repeats),
                    milliseconds(gradient, tokens, groups, repeats=options.repeats),
                ]
                texts = [
                    f'{c[0]:.1f} ({c[1]:.1f})' if isinstance(c, tuple) else f'{c:.0f}'
                    for c in cells
                ]
                numbers = ''.join(f'{n:>6}' for n in (num_tokens, width, steps))
                print(numbers + ''.join(f'{t:>16}' for t in texts) + f'{same:>6.0%}', flush=True)
    wall, cpu = training_part(options.batch)
    print(
        f'in a training step (two random draws, N 196, D 512): {wall:.0f} ms, CPU time {cpu:.0f} ms'
    )


if __name__ == '__main__':
    main()
