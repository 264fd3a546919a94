"""Bipartite matching as one Pallas kernel for NVIDIA GPUs: all steps of an image are one program.

The rule and the arithmetic are those of `bipartite.py`, and so are the groups. The inner products
of an image do not fit a multiprocessor's fast memory; they stay in the device's and its cache. So
that few bytes move, a group keeps the row and column of one of its tokens, its *slot*, and the list
of groups is a list of slots. The rows and columns of those that join are added to others; nothing
else is written.

Written for Pallas' Triton backend, which jax deprecates since 0.11 without naming an end. Its
successor, Mosaic GPU, has no loads by arrays of indices.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mim_jax.morphing import pairs

MAX_TOKENS = 256  # a program holds all of set A in its registers
COLUMNS = 16  # tokens of set B that it compares with set A at once
TURNED = 8  # columns of receivers that are written at once

# Lists of integers that an image's program writes down: the slot of each place; of each slot where
# its token went to, and the last step in which it received one; this step's slots that join, by
# rank, and those which they join; at the end the place of each slot.
LISTS = AT, TO, TAKEN, SOURCE, INTO, PLACE = range(6)


def grouped(high, low, schedules, *, interpret):
    """Groups [B, N] int32 of inner products, two [B, N, N] of `pairs.gram`, and schedules [B, 3]:
    tokens per step, steps, and 1 where the first token stays alone.
    """
    batch, num_tokens, _ = high.shape
    padded = max(64, pl.next_power_of_2(num_tokens))
    square = pl.BlockSpec((None, num_tokens, num_tokens), lambda image: (image, 0, 0))
    vector, schedule = (
        pl.BlockSpec((None, size), lambda image: (image, 0)) for size in (num_tokens, 3)
    )
    lists = (len(LISTS), 2 * padded)  # one half is for what is not to be kept
    *_, groups = pl.pallas_call(
        functools.partial(_kernel, interpret),
        grid=(batch,),
        in_specs=[square, square, schedule],
        out_specs=[
            square,
            square,
            pl.BlockSpec((None, *lists), lambda image: (image, 0, 0)),
            vector,
        ],
        out_shape=[
            jax.ShapeDtypeStruct(high.shape, jnp.float32),
            jax.ShapeDtypeStruct(high.shape, jnp.float32),
            jax.ShapeDtypeStruct((batch, *lists), jnp.int32),
            jax.ShapeDtypeStruct((batch, num_tokens), jnp.int32),
        ],
        input_output_aliases={0: 0, 1: 1},
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
    )(high, low, schedules)
    return groups


def _kernel(interpret, _high, _low, schedule, high, low, lists, groups):
    """One image: `merge_repeatedly` with its state in `high`, `low` and `lists`."""
    tokens_per_step, num_steps, protected = (schedule[i] for i in range(3))
    (num_tokens,) = groups.shape
    padded = lists.shape[1] // 2
    slot = lax.iota(jnp.int32, padded)

    def count(live):
        return jnp.minimum(tokens_per_step, (live - protected) >> 1)

    def unfinished(carry):
        step, live = carry
        return (step < num_steps) & (count(live) > 0)

    def join(carry):
        step, live = carry
        merges = count(live)
        _match(interpret, high, low, lists, live, merges, protected, step)
        receives = _read(lists, TAKEN, slot) == step
        others = (_read(lists, TO, slot) == slot) & ~receives

        def add_row(k, _):
            _add(high, low, (lists[SOURCE, k], slot), (lists[INTO, k], slot), slot < num_tokens)
            _wait(interpret)

        def add_column(k, _):
            _add(high, low, (slot, lists[SOURCE, k]), (slot, lists[INTO, k]), receives)
            _wait(interpret)

        def turn(i, _):
            """What others have in a receiver's column is what it has in theirs."""
            index = TURNED * i + lax.iota(jnp.int32, TURNED)
            slots = jnp.where(index < merges, _read(lists, INTO, index, index < merges), num_tokens)
            there = (index < merges)[:, None] & others[None, :]
            row, column = (jnp.broadcast_to(x, there.shape) for x in (slots[:, None], slot[None]))
            for part, values in zip(
                (high, low), _pairs_at(high, low, (row, column), there), strict=True
            ):
                plgpu.store(part.at[column, row], values, mask=there)

        lax.fori_loop(0, merges, add_row, None)
        lax.fori_loop(0, merges, add_column, None)
        lax.fori_loop(0, (merges + TURNED - 1) // TURNED, turn, None)
        _wait(interpret)
        return step + 1, live - merges

    _write(lists, AT, slot, slot)
    _write(lists, TAKEN, slot, jnp.full_like(slot, -1))
    _write(lists, TO, slot, jnp.where(slot < num_tokens, slot, -1))
    _wait(interpret)
    start = jnp.int32(0), jnp.int32(num_tokens)
    steps, live = lax.while_loop(unfinished, join, start)

    _write(lists, PLACE, _read(lists, AT, slot), slot, keep=slot < live)
    _wait(interpret)
    home = lax.fori_loop(0, steps, lambda _, home: _read(lists, TO, home), slot % num_tokens)
    plgpu.store(groups.at[slot], _read(lists, PLACE, home), mask=slot < num_tokens)


def _match(interpret, high, low, lists, live, merges, protected, step):
    """`matching.new_positions`, written down: the new list, and which slots join which."""
    padded = lists.shape[1] // 2
    index = lax.iota(jnp.int32, padded // 2)
    live_b = live >> 1
    live_a = live - live_b
    kept = live_a - merges
    in_a, in_b = index < live_a, index < live_b
    of_a = _read(lists, AT, 2 * index, in_a)
    of_b = _read(lists, AT, 2 * index + 1, in_b)

    def compare(i, found):
        """Best partners of A among those of B before, and in this block."""
        best, best_rest, partner = found
        column = COLUMNS * i + lax.iota(jnp.int32, COLUMNS)
        there = column < live_b
        slots = _read(lists, AT, 2 * column + 1, there)
        shape = index.size, COLUMNS
        place = jnp.broadcast_to(of_a[:, None], shape), jnp.broadcast_to(slots[None, :], shape)
        similarity, rest = pairs.cosines(
            *_pairs_at(high, low, place, in_a[:, None] & there[None, :]),
            [x[:, None] for x in norms],
            [x[None, :] for x in _norms(high, low, slots, there)],
            round_to_even=jnp.round if interpret else _round,
        )
        similarity = jnp.where(there[None, :], similarity, -jnp.inf)
        top = jnp.max(similarity, axis=1)
        rest = jnp.where(similarity == top[:, None], rest, -jnp.inf)
        top_rest = jnp.max(rest, axis=1)
        first = jnp.min(jnp.where(rest == top_rest[:, None], column[None, :], padded), axis=1)
        better = (top > best) | ((top == best) & (top_rest > best_rest))
        new = top, top_rest, first
        return tuple(jnp.where(better, x, y) for x, y in zip(new, found, strict=True))

    norms = _norms(high, low, of_a, in_a)
    nothing = jnp.full(index.shape, -jnp.inf, jnp.float32)
    blocks = (live_b + COLUMNS - 1) // COLUMNS
    found = lax.fori_loop(0, blocks, compare, (nothing, nothing, jnp.zeros_like(index)))

    candidate = in_a & (index >= protected)
    best = jnp.where(candidate, found[0], -jnp.inf)
    rest = jnp.where(candidate, found[1], 0.0)
    same = best[None, :] == best[:, None]
    before = (rest[None, :] == rest[:, None]) & (index[None, :] < index[:, None])
    ahead = same & ((rest[None, :] > rest[:, None]) | before)
    ahead |= best[None, :] > best[:, None]
    rank = jnp.sum(ahead.astype(jnp.int32), axis=1)
    joins = rank < merges
    in_order = jnp.cumsum((~joins).astype(jnp.int32), axis=0) - 1
    stays = jnp.where(protected > 0, in_order, rank - merges)
    into = _read(lists, AT, 2 * found[2] + 1, joins)

    _wait(interpret)  # the list has been read
    _write(lists, AT, stays, of_a, keep=in_a & ~joins)
    _write(lists, AT, kept + index, of_b, keep=in_b)
    _write(lists, TO, of_a, into, keep=joins)
    _write(lists, TAKEN, into, jnp.full_like(into, step), keep=joins)
    _write(lists, SOURCE, rank, of_a, keep=joins)
    _write(lists, INTO, rank, into, keep=joins)
    _wait(interpret)


def _norms(high, low, slots, there):
    """Pairs of `inverse_sqrt` of the groups in these slots; zero where there is none."""
    return pairs.inverse_sqrt(*_pairs_at(high, low, (slots, slots), there))


def _pairs_at(high, low, place, there):
    return [plgpu.load(x.at[place], mask=there, other=0.0) for x in (high, low)]


def _add(high, low, source, into, there):
    """Adds entries to others: a row to another, or a column."""
    source, into = (
        tuple(jnp.broadcast_to(x, there.shape) for x in place) for place in (source, into)
    )
    # All is read before anything is written: the compiler cannot know that nothing overlaps.
    new = [
        x + y
        for x, y in zip(
            _pairs_at(high, low, source, there), _pairs_at(high, low, into, there), strict=True
        )
    ]
    for part, values in zip((high, low), new, strict=True):
        plgpu.store(part.at[into], values, mask=there)


def _read(lists, name, index, there=None):
    """Entries of one list, slot 0 where there is none."""
    index = index if there is None else jnp.where(there, index, 0)
    return plgpu.load(lists.at[jnp.full_like(index, name), index])


def _write(lists, name, index, values, keep=None):
    """Writes entries of one list; those not to be kept go to its other half."""
    if keep is not None:
        index = jnp.where(keep, index, lists.shape[1] // 2 + lax.iota(jnp.int32, index.size))
    plgpu.store(lists.at[jnp.full_like(index, name), index], values)


def _wait(interpret):
    """Until every thread sees what the others have written."""
    if not interpret:
        plgpu.debug_barrier()


def _round(x):
    """`jnp.round`, which the backend lacks."""
    (rounded,) = plgpu.elementwise_inline_asm(
        'cvt.rni.f32.f32 $0, $1;',
        args=[x],
        constraints='=f,f',
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return rounded
