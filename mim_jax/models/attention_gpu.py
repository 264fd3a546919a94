"""Attention as Pallas kernels for NVIDIA GPUs: no logits, no weights in memory.

A sequence has any length: loads and stores leave out what is beyond its end, so that nothing is
padded, transposed or copied for them. The forward pass keeps each query's log-sum-exp (Dao,
FlashAttention-2). The backward pass is two kernels. One has the queries' gradient, and that of a
bias, which a program sums over several images on the chip, so that no two programs add to one
place: results are deterministic. The other has the gradients of keys and values. Both compute the
weights again.

Written for Pallas' Triton backend, which jax deprecates since 0.11 without naming an end.
"""

import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from mim_jax.errors import UserError

MAX_TOKENS = 1024
MAX_TOKENS_OF_BIAS = 640  # whose gradient a program holds for its queries
WIDTHS = (16, 32, 64, 128)  # of a head
LEAST = 16  # rows or columns of a product
ALIGNED = 128  # a bias is padded to multiples of it
LOG2E = math.log2(math.e)


class Blocks(NamedTuple):
    """How a kernel is cut: a program owns `rows` and takes `columns` of the others at once."""

    rows: int
    columns: int
    warps: int
    stages: int

    @property
    def compiled(self):
        return plgpu.CompilerParams(num_warps=self.warps, num_stages=self.stages)


class Setting(NamedTuple):
    """Of the forward pass, of the gradients of queries (over so many images, where a bias is
    shared) and of keys. The fastest that were tried on an H200, at 197 tokens and heads of 64.
    """

    forward: Blocks = Blocks(64, 32, 4, 3)
    queries: Blocks = Blocks(64, 64, 4, 1)
    keys: Blocks = Blocks(64, 32, 4, 3)
    images: int = 16


def attention(interpret, arrays, bias, setting=None):
    """Result [B,Q,1,heads,width] of arrays [B,S,n,heads,width]: queries, keys and values, n = 1; or
    one, n = 3, that holds them in this order. bias: [1 or B,heads,Q,S] or None.
    """
    q, k, _ = _three(arrays)
    _, queries, _, _, width = q.array.shape
    check(width=width, tokens=max(queries, k.array.shape[1]), bias=bias is not None)
    return _attention(setting or Setting(), interpret, arrays, bias)


def check(*, width, tokens, bias):
    """Raises UserError for heads and lengths that the kernels do not take, with a bias or not."""
    if width not in WIDTHS:
        raise UserError(
            f"attention_kernel = 'pallas' takes heads {', '.join(map(str, WIDTHS))} wide on a GPU, "
            f"and these are {width}: set it to 'xla'."
        )
    limit = MAX_TOKENS_OF_BIAS if bias else MAX_TOKENS
    if tokens > limit:
        raise UserError(
            f"attention_kernel = 'pallas' takes at most {limit} tokens "
            f'{"with a bias " if bias else ""}on a GPU, and these are {tokens}: '
            "set it to 'xla'."
        )


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _attention(setting, interpret, arrays, bias):
    return _forward(setting, interpret, arrays, bias)[0]


class _Slot(NamedTuple):
    """Queries, keys or values: `array`[:, :, index]."""

    array: jax.Array
    index: int

    def spec(self, images=None):
        """The block of one image and head, or of some images, in a grid (block, head, image)."""
        _, length, _, _, width = self.array.shape
        return pl.BlockSpec(
            (images, _padded(length), None, None, width), lambda i, h, b: (b, 0, self.index, h, 0)
        )


def _three(arrays):
    if len(arrays) == 1:
        return [_Slot(arrays[0], i) for i in range(3)]
    return [_Slot(x, 0) for x in arrays]


def _forward(setting, interpret, arrays, bias):
    q, k, v = _three(arrays)
    blocks, exp2 = setting.forward, jnp.exp2 if interpret else _exp2
    batch, queries, _, heads, width = q.array.shape
    lengths = queries, k.array.shape[1]
    out = _Slot(jax.ShapeDtypeStruct((batch, queries, 1, heads, width), q.array.dtype), 0)
    result, sums = pl.pallas_call(
        functools.partial(_forward_kernel, exp2, blocks, lengths),
        grid=(pl.cdiv(queries, blocks.rows), heads, batch),
        in_specs=[q.spec(), k.spec(), v.spec(), _spec_of_bias(bias)],
        out_specs=[out.spec(), _per_query(queries)],
        out_shape=[out.array, jax.ShapeDtypeStruct((batch, heads, queries), jnp.float32)],
        compiler_params=blocks.compiled,
        interpret=interpret,
    )(q.array, k.array, v.array, _prepared(bias, q.array.dtype))
    return result, (arrays, bias, result, sums)


def _backward(setting, interpret, kept, gradient):
    arrays, bias, result, sums = kept
    q, k, v = _three(arrays)
    batch, queries, _, heads, _ = q.array.shape
    lengths = queries, k.array.shape[1]
    shared = bias is not None and bias.shape[0] == 1
    images = min(setting.images, batch) if shared else 1
    parts = pl.cdiv(batch, images)
    of_queries = _per_query(queries, images)
    dbias = spec = None
    if bias is not None:
        dbias = jax.ShapeDtypeStruct((parts, heads, *map(_padded, bias.shape[2:])), jnp.float32)
        spec = pl.BlockSpec((None, None, *dbias.shape[2:]), lambda i, h, b: (b, h, 0, 0))
    blocks, exp2 = setting.queries, jnp.exp2 if interpret else _exp2
    dq, products, dbias = pl.pallas_call(
        functools.partial(_queries_kernel, exp2, blocks, lengths, batch),
        grid=(pl.cdiv(queries, blocks.rows), heads, parts),
        in_specs=[
            *(x.spec(images) for x in (q, k, v)),
            _spec_of_bias(bias),
            *(_Slot(x, 0).spec(images) for x in (result, gradient)),
            of_queries,
        ],
        out_specs=[q.spec(images), of_queries, spec],
        out_shape=[_like(q.array), _like(sums), dbias],
        compiler_params=blocks.compiled,
        interpret=interpret,
    )(q.array, k.array, v.array, _prepared(bias, q.array.dtype), result, gradient, sums)
    if bias is not None:
        dbias = dbias[:, :, : lengths[0], : lengths[1]]
        if shared:
            dbias = jnp.sum(dbias, axis=0, keepdims=True)
        dbias = dbias.astype(bias.dtype)
    gradients = _keys_gradients(setting, interpret, arrays, bias, sums, products, dq, gradient)
    return gradients, dbias


def _keys_gradients(setting, interpret, arrays, bias, sums, products, dq, gradient):
    """Of arrays, from the gradient of queries: the one array of gradients has its queries already,
    and gets its keys and values.
    """
    blocks, exp2 = setting.keys, jnp.exp2 if interpret else _exp2
    q, k, v = _three(arrays)
    batch, queries, _, heads, _ = q.array.shape
    lengths = queries, k.array.shape[1]
    flipped = None if bias is None else bias.swapaxes(2, 3)
    whole = [dq] if len(arrays) == 1 else []
    outputs = whole or [k.array, v.array]
    gradients = pl.pallas_call(
        functools.partial(_keys_kernel, exp2, blocks, lengths),
        grid=(pl.cdiv(lengths[1], blocks.rows), heads, batch),
        in_specs=[
            *(x.spec() for x in (q, k, v)),
            _spec_of_bias(flipped),
            _Slot(gradient, 0).spec(),
            *(_per_query(queries),) * 2,
            *map(_every_slot, whole),
        ],
        out_specs=list(map(_every_slot, outputs)),
        out_shape=list(map(_like, outputs)),
        input_output_aliases={6 + (bias is not None): 0} if whole else {},
        compiler_params=blocks.compiled,
        interpret=interpret,
    )(
        q.array,
        k.array,
        v.array,
        _prepared(flipped, q.array.dtype),
        gradient,
        sums,
        products,
        *whole,
    )
    return tuple(gradients if whole else [dq, *gradients])


_attention.defvjp(_forward, _backward)


def _like(x):
    return jax.ShapeDtypeStruct(x.shape, x.dtype)


def _padded(length):
    """What blocks may reach beyond a sequence's end."""
    return pl.cdiv(length, ALIGNED) * ALIGNED


def _per_query(queries, images=None):
    return pl.BlockSpec((images, None, _padded(queries)), lambda i, h, b: (b, h, 0))


def _every_slot(x):
    _, length, slots, _, width = x.shape
    return pl.BlockSpec(
        (None, _padded(length), slots, None, width), lambda i, h, b: (b, 0, 0, h, 0)
    )


def _prepared(bias, dtype):
    """The bias for logits to the base of 2, of lengths that make its rows quick to read; as fine as
    the queries, and finite far above where the kernels begin with their maximum, or -inf.
    """
    if bias is None:
        return None
    bias = jnp.where(jnp.isneginf(bias), bias, jnp.maximum(bias, -1e29))
    more = [(0, 0), (0, 0), *((0, _padded(size) - size) for size in bias.shape[2:])]
    return jnp.pad(bias * LOG2E, more).astype(dtype)


def _spec_of_bias(bias):
    if bias is None:
        return None
    shared = bias.shape[0] == 1
    return pl.BlockSpec(
        (None, None, *map(_padded, bias.shape[2:])),
        lambda i, h, b: (0 if shared else b, h, 0, 0),
    )


def _forward_kernel(exp2, blocks, lengths, q, k, v, bias, out, sums):
    """Some queries of one image and head, keys by blocks, with a running maximum and sum."""
    rows = _Rows(pl.program_id(0) * blocks.rows, blocks.rows, lengths[0])
    queries = rows.read(q)

    def over_keys(columns, carry):
        result, top, total = carry
        logits = _logits(queries, columns.read(k), bias, rows, columns)
        new_top = jnp.maximum(top, jnp.max(logits, axis=1))
        shrunk = exp2(top - new_top)
        weights = exp2(logits - new_top[:, None])
        total = total * shrunk + jnp.sum(weights, axis=1)
        values = columns.read(v)
        result = result * shrunk[:, None] + _product(weights.astype(values.dtype), values, (1, 0))
        return result, new_top, total

    nothing = (
        jnp.zeros(queries.shape, jnp.float32),
        jnp.full((blocks.rows,), -1e30, jnp.float32),  # finite, for where a bias hides all so far
        jnp.zeros((blocks.rows,), jnp.float32),
    )
    result, top, total = _over(lengths[1], blocks.columns, over_keys, nothing)
    rows.write(out, result / total[:, None])
    rows.write(sums, top + jnp.log2(total))


def _queries_kernel(
    exp2, blocks, lengths, batch, q, k, v, bias, out, above, sums, dq, products, dbias=None
):
    """The gradient of some queries of one head, image by image, and the sum of their bias's."""
    rows = _Rows(pl.program_id(0) * blocks.rows, blocks.rows, lengths[0])
    parts = _parts(lengths[1], blocks.columns)

    def of_image(image, dbiases):
        queries, results, gradients = (rows.read(x, image) for x in (q, out, above))
        of_query = rows.read_numbers(sums, image, other=jnp.inf)
        product = jnp.sum(results.astype(jnp.float32) * gradients.astype(jnp.float32), axis=1)
        rows.write(products, product, image)
        gradient = jnp.zeros(queries.shape, jnp.float32)
        new = []
        for columns, total in zip(parts, dbiases, strict=True):
            keys = columns.read(k, image)
            logits = _logits(queries, keys, bias, rows, columns)
            weights = exp2(logits - of_query[:, None])
            dweights = _product(gradients, columns.read(v, image), (1, 1))
            dlogits = weights * (dweights - product[:, None])
            gradient += _product(dlogits.astype(keys.dtype), keys, (1, 0))
            new.append(None if total is None else total + dlogits)
        rows.write(dq, gradient * q.shape[-1] ** -0.5, image)
        return new

    if dbias is None:
        of_image(np.int32(0), [None for _ in parts])
        return
    images = jnp.minimum(q.shape[0], batch - pl.program_id(2) * q.shape[0])
    nothing = [jnp.zeros((blocks.rows, columns.size), jnp.float32) for columns in parts]
    totals = lax.fori_loop(0, images, of_image, nothing)
    for columns, total in zip(parts, totals, strict=True):
        dbias[rows.slice, columns.slice] = total


def _keys_kernel(exp2, blocks, lengths, q, k, v, bias, above, sums, products, *outputs):
    """The gradients of some keys and values of one image and head, queries by blocks."""
    rows = _Rows(pl.program_id(0) * blocks.rows, blocks.rows, lengths[1])
    keys, values = (rows.read(x) for x in (k, v))

    def over_queries(columns, carry):
        dkeys, dvalues = carry
        queries, gradients = (columns.read(x) for x in (q, above))
        logits = _logits(keys, queries, bias, rows, columns)
        of_query = columns.read_numbers(sums, other=jnp.inf)
        weights = exp2(logits - of_query[None, :])
        dvalues += _product(weights.astype(gradients.dtype), gradients, (1, 0))
        dweights = _product(values, gradients, (1, 1))
        product = columns.read_numbers(products, other=0.0)
        dlogits = weights * (dweights - product[None, :])
        return dkeys + _product(dlogits.astype(queries.dtype), queries, (1, 0)), dvalues

    nothing = jnp.zeros(keys.shape, jnp.float32), jnp.zeros(keys.shape, jnp.float32)
    dkeys, dvalues = _over(lengths[0], blocks.columns, over_queries, nothing)
    dkeys *= q.shape[-1] ** -0.5
    if outputs[0].shape[1] == 1:
        places = (outputs[0], np.int32(0)), (outputs[1], np.int32(0))
    else:
        places = (outputs[-1], np.int32(1)), (outputs[-1], np.int32(2))
    for (output, index), gradient in zip(places, (dkeys, dvalues), strict=True):
        plgpu.store(
            output.at[rows.slice, index, :],
            gradient.astype(output.dtype),
            mask=rows.there(gradient.shape),
        )


class _Rows(NamedTuple):
    """Tokens of a sequence: so many from a start on, some of which may be beyond its end."""

    start: int | jax.Array
    size: int
    length: int

    @property
    def all_there(self):
        return isinstance(self.start, int) and self.start + self.size <= self.length

    @property
    def slice(self):
        return pl.ds(self.start, self.size)

    def there(self, shape, axis=0):
        """Which of them there are, along an axis of a shape."""
        there = self.start + lax.iota(jnp.int32, self.size) < self.length
        return lax.broadcast_in_dim(there, shape, (axis,))

    def read(self, ref, *image):
        """[size, width] of a sequence of tokens, zeros beyond its end."""
        where = ref.at[*image, self.slice, :]
        if self.all_there:
            return plgpu.load(where, eviction_policy='evict_first')
        there = self.there((self.size, ref.shape[-1]))
        return plgpu.load(where, mask=there, other=0.0, eviction_policy='evict_first')

    def read_numbers(self, ref, *image, other):
        """[size] of a sequence of numbers, another beyond its end."""
        return plgpu.load(ref.at[*image, self.slice], mask=self.there((self.size,)), other=other)

    def write(self, ref, values, *image):
        """Writes [size] or [size, width] to a sequence, up to its end."""
        where = *image, self.slice, *(slice(None) for _ in values.shape[1:])
        plgpu.store(ref.at[where], values.astype(ref.dtype), mask=self.there(values.shape))


class _Full(_Rows):
    """All of them there, at a start that is an array."""

    @property
    def all_there(self):
        return True


def _parts(length, size):
    """Blocks that cover a sequence, of sizes that are powers of two: the last may be smaller."""
    return [
        _Rows(start, min(size, max(LEAST, pl.next_power_of_2(length - start))), length)
        for start in range(0, length, size)
    ]


def _over(length, size, body, carry):
    """`body` of a block and a carry, over the blocks of a sequence."""
    *full, last = _parts(length, size)

    def of_full(i, carry):
        return body(_Full(i * size, size, length), carry)

    return body(last, lax.fori_loop(0, len(full), of_full, carry))


def _logits(x, y, bias, rows, columns):
    """Logits to the base of 2 float32 [rows, columns], none for columns beyond the end; of queries
    and keys, or of keys and queries, [size, width].
    """
    logits = _product(x, y, (1, 1)) * (LOG2E * x.shape[-1] ** -0.5)
    if bias is not None:
        block = bias.at[rows.slice, columns.slice]
        logits += plgpu.load(block, eviction_policy='evict_last')
    if not columns.all_there:
        logits = jnp.where(columns.there(logits.shape, 1), logits, -jnp.inf)
    return logits


def _exp2(x):
    """2**x, zero where that would be less than a normal number."""
    (result,) = plgpu.elementwise_inline_asm(
        'ex2.approx.ftz.f32 $0, $1;',
        args=[x],
        constraints='=f,f',
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(x.shape, x.dtype)],
    )
    return result


def _product(x, y, axes):
    """The product of two matrices over these of their axes, summed in float32."""
    dimensions = ((axes[:1], axes[1:]), ((), ()))
    # What JAX is told of precision is of float32.
    precision = None if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    return lax.dot_general(
        x, y, dimensions, precision=precision, preferred_element_type=jnp.float32
    )
