"""Bipartite matching as one Pallas kernel for TPUs: an image's inner products stay on the chip.

The rule and the arithmetic are those of `bipartite.py`, and so are the groups. All steps of an
image are one program, which ends when the image is done. A chip has no cheap way to take every
other row, to sort or to gather: sets A and B are the even and odd places of one matrix, all else
masked, and what moves is multiplied by a matrix of zeros and ones.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from mim_jax.morphing import pairs

MAX_TOKENS = 640  # the most that it was compiled for


def grouped(high, low, schedules, *, interpret):
    """Groups [B, N] int32 of inner products, two [B, N, N] of `pairs.gram`, and schedules [B, 3]:
    tokens per step, steps, and 1 where the first token stays alone.
    """
    batch, num_tokens, _ = high.shape
    square = pl.BlockSpec((None, num_tokens, num_tokens), lambda image, _: (image, 0, 0))
    found = pl.pallas_call(
        _kernel,
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(batch,),
            in_specs=[square, square],
            out_specs=pl.BlockSpec((None, 1, num_tokens), lambda image, _: (image, 0, 0)),
            scratch_shapes=[pltpu.VMEM((num_tokens, num_tokens), jnp.float32)] * 2,
        ),
        out_shape=jax.ShapeDtypeStruct((batch, 1, num_tokens), jnp.int32),
        compiler_params=pltpu.CompilerParams(dimension_semantics=('parallel',)),
        interpret=interpret,
    )(schedules.reshape(-1), high, low)
    return found[:, 0]


def _kernel(schedules, high_in, low_in, groups, high, low):
    """One image: `merge_repeatedly` with its state in `high` and `low`."""
    image = pl.program_id(0)
    tokens_per_step, num_steps, protected = (schedules[3 * image + i] for i in range(3))
    num_tokens = groups.shape[1]
    high[...], low[...] = high_in[...], low_in[...]
    groups[...] = lax.broadcasted_iota(jnp.int32, (1, num_tokens), 1)

    def count(live):
        return jnp.minimum(tokens_per_step, (live - protected) >> 1)

    def unfinished(carry):
        step, live = carry
        return (step < num_steps) & (count(live) > 0)

    def join(carry):
        step, live = carry
        merges = count(live)
        position = _new_positions(high[...], low[...], live, merges, protected)
        row, column = _indices(num_tokens)
        to = _indicator(row == _across(position))
        back = _indicator(position == column)
        for part in (high, low):
            part[...] = _right(_left(to, part[...]), back)
        found = jnp.where(row == groups[...].astype(jnp.float32), position, 0.0)
        groups[...] = jnp.sum(found, axis=0, keepdims=True).astype(jnp.int32)
        return step + 1, live - merges

    lax.while_loop(unfinished, join, (jnp.int32(0), jnp.int32(num_tokens)))


def _new_positions(high, low, live, merges, protected):
    """`matching.new_positions` of all tokens, float32 [N, 1], from inner products [N, N].

    Here a token of A is at the even place `row`, a token of B at the odd place `column`.
    """
    num_tokens = high.shape[0]
    row, column = _indices(num_tokens)
    place = row[:, :1]
    live, merges, protected = (x.astype(jnp.float32) for x in (live, merges, protected))
    live_a = jnp.ceil(live * 0.5)
    kept = live_a - merges

    same = row == column
    norms = [
        pairs.inverse_sqrt(
            *(jnp.sum(jnp.where(same, x, 0.0), axis, keepdims=True) for x in (high, low))
        )
        for axis in (1, 0)
    ]
    similarity, rest = pairs.cosines(high, low, *norms)
    similarity = jnp.where(_odd(column) & (column < live), similarity, -jnp.inf)
    best = jnp.max(similarity, axis=1, keepdims=True)
    rest = jnp.where(similarity == best, rest, -jnp.inf)
    best_rest = jnp.max(rest, axis=1, keepdims=True)
    partner = jnp.min(jnp.where(rest == best_rest, column, num_tokens), axis=1, keepdims=True)

    candidate = ~_odd(place) & (place >= protected) & (place < live)
    best = jnp.where(candidate, best, -jnp.inf)
    best_rest = jnp.where(candidate, best_rest, 0.0)
    other, other_rest = _across(best), _across(best_rest)
    before = (other_rest > best_rest) | ((other_rest == best_rest) & (column < row))
    rank = _count((other > best) | ((other == best) & before))
    joins = rank < merges
    stays = _across(jnp.where(joins | _odd(place), 0.0, 1.0)) > 0.0
    stays = jnp.where(protected > 0.0, _count(stays & (column < row)), rank - merges)
    position = jnp.where(joins, kept + _half(partner), stays)
    return jnp.where(_odd(place), kept + _half(place), position)


def _indices(num_tokens):
    """Row and column of every entry, float32 [N, N]: sums and minima are those of float32."""
    shape = (num_tokens, num_tokens)
    return (lax.broadcasted_iota(jnp.int32, shape, axis).astype(jnp.float32) for axis in (0, 1))


def _half(x):
    """Whole numbers divided by two, rounded down."""
    return jnp.floor(x * 0.5)


def _odd(x):
    return _half(x) * 2.0 != x


def _count(condition):
    """How many of each row's entries are true, float32 [N, 1]."""
    return jnp.sum(jnp.where(condition, 1.0, 0.0), axis=1, keepdims=True)


def _across(x):
    """A column [N, 1] as a row [1, N]."""
    row, column = _indices(x.shape[0])
    return jnp.sum(jnp.where(row == column, x, 0.0), axis=0, keepdims=True)


def _indicator(condition):
    return jnp.where(condition, 1.0, 0.0).astype(jnp.bfloat16)


def _left(indicator, x):
    """Product of a matrix of zeros and ones with float32 x, which is not rounded."""
    return sum(_product(indicator, part) for part in _parts(x))


def _right(x, indicator):
    return sum(_product(part, indicator) for part in _parts(x))


def _product(x, y):
    exact = {'precision': lax.Precision.DEFAULT, 'preferred_element_type': jnp.float32}
    return jnp.dot(x, y, **exact)


def _parts(x):
    """Three bfloat16 whose sum is float32 x: eight bits of it each."""
    parts = []
    for _ in range(3):
        # Cut, and not rounded: a compiler may drop a conversion and its reverse.
        bits = lax.bitcast_convert_type(x, jnp.int32) & -(2**16)
        part = lax.bitcast_convert_type(bits, jnp.float32)
        parts.append(part.astype(jnp.bfloat16))
        x = x - part
    return parts
