"""Inner products and cosines as pairs of float32, exact enough that their order can be trusted.

The grouping compares cosines, and the order of two of them decides every later step. In plain
float32 similar tokens have cosines that differ by less than the rounding (about 3e-8), so that two
correct programs, or two devices, would form different groups. Here a number is an unevaluated sum
`high + low` of two float32 (about 1e-10 relative), in operations that every device does exactly:
products of short integers and 12-bit factors, sums of integers below 2**24, powers of two. No
step relies on how a compiler fuses multiplication and addition.
"""

import jax.numpy as jnp
from jax import lax

MANTISSA = 24  # significant bits of a float32
DIGIT_BITS = 8  # an integer of this many bits and a sign is exact in bfloat16
TOKEN_BITS = 32  # bits kept of a token, counted from its largest component


def power_of_two(exponent):
    """2.0 ** exponent for int32 `exponent`, exact on every device (exp2 is not)."""
    bits = (jnp.clip(exponent, -126, 127) + 127) << 23
    return lax.bitcast_convert_type(bits.astype(jnp.int32), jnp.float32)


def exponent_above(x):
    """The smallest int32 e with 2 ** e > x, for float32 x >= 0; -126 for zero and subnormal x."""
    return (lax.bitcast_convert_type(x, jnp.int32) >> 23) - 126


def head(x):
    """`x` rounded to 12 significant bits: the product of two such numbers is an exact float32."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    last = (bits >> 12) & 1  # a tie goes to the even neighbour
    return lax.bitcast_convert_type((bits + 0x7FF + last) & -(2**12), jnp.float32)


def gram(tokens):
    """Inner products of the tokens of each image, up to one power of two per image.

    Each token is cut into signed digits of 8 bits. Products of digits are integers whose sum over
    the width stays below 2**24, so that a matrix product of any precision, bfloat16 included, is
    exact and the same on every device.

    Args:
      tokens: [B, N, D] float32.

    Returns:
      `(high, low)`, [B, N, N] float32. `high` is a multiple of a power of two q (one per image)
      such that every sum of its entries over two groups of tokens is exact in float32, in any
      order; |low| <= q / 2.
    """
    num_tokens, width = tokens.shape[-2:]
    bits = min(DIGIT_BITS, (MANTISSA - (width - 1).bit_length()) // 2 + 1)
    exponent = exponent_above(jnp.max(jnp.abs(tokens), axis=-1, keepdims=True))
    rest = tokens * power_of_two(-exponent) * 2.0 ** (bits - 1)
    digits = []
    for _ in range(-(-TOKEN_BITS // bits)):
        digits.append(jnp.round(rest))
        rest = (rest - digits[-1]) * 2.0**bits

    product = lax.platform_dependent(digits, cpu=_products, default=_joined_products)
    high = product[0, 0]
    mixed = squares = jnp.zeros_like(high)
    for level in reversed(range(1, len(digits))):
        mixed = mixed + sum(product[i, level - i] for i in range((level + 1) // 2))
        if level % 2 == 0:
            squares = squares + product[level // 2, level // 2]
        mixed, squares = mixed * 2.0**-bits, squares * 2.0**-bits
    low = mixed + jnp.swapaxes(mixed, -1, -2) + squares

    # Tokens keep their length relative to the longest: a group's sum weighs them by it.
    scale = power_of_two(exponent - jnp.max(exponent, axis=-2, keepdims=True))
    high, low = (x * scale * jnp.swapaxes(scale, -1, -2) for x in (high, low))

    # No sum over two groups exceeds (sum of norms)**2 <= N * trace; 24 bits below that is q.
    trace = jnp.trace(high + low, axis1=-2, axis2=-1)[..., None, None]
    quantum = exponent_above(1.01 * num_tokens * trace) - MANTISSA
    rounded = jnp.round((high + low) * power_of_two(-quantum)) * power_of_two(quantum)
    return rounded, (high - rounded) + low


def _products(digits):
    """{(i, j): [B, N, N]} of digits i <= j whose numbers add up to less than there are digits."""
    most = len(digits)
    return {
        (i, j): _inner(digits[i], digits[j])
        for i in range((most + 1) // 2)
        for j in range(i, most - i)
    }


def _joined_products(digits):
    """The same in bfloat16, half the bytes, and a digit with all that it meets at once."""
    num_tokens, most = digits[0].shape[1], len(digits)
    digits = [digit.astype(jnp.bfloat16) for digit in digits]
    found = {}
    for i in range((most + 1) // 2):
        product = _inner(digits[i], jnp.concatenate(digits[i : most - i], axis=1))
        for place, j in enumerate(range(i, most - i)):
            found[i, j] = product[:, :, place * num_tokens : (place + 1) * num_tokens]
    return found


def _inner(x, y):
    return jnp.einsum('bnd,bmd->bnm', x, y, preferred_element_type=jnp.float32, precision='default')


def inverse_sqrt(high, low):
    """1 / sqrt(high + low) as a pair whose first part has 12 bits; zero unless the sum is > 0."""
    total = high + low
    positive = total > 0
    total = jnp.where(positive, total, 1.0)
    high_head = head(total)
    high_tail = jnp.where(positive, (high - high_head) + low, 0.0)
    first = head(lax.rsqrt(total))
    square = first * first
    square_head = head(square)
    square_tail = square - square_head
    # 1 - (high + low) * square, about 2**-11: a product of heads near 1 leaves 1 without rounding.
    error = (1.0 - high_head * square_head) - (
        high_head * square_tail + high_tail * square_head + high_tail * square_tail
    )
    second = first * error * (0.5 + error * (0.375 + error * 0.3125))
    return jnp.where(positive, first, 0.0), jnp.where(positive, second, 0.0)


def multiply(high, low, first, second):
    """(high + low) * (first + second) as a pair; `first` has 12 bits and |second| is small."""
    high_head = head(high + low)
    tail = (high - high_head) + low
    return high_head * first, tail * first + (high_head + tail) * second


def settle(high, low, *, round_to_even=jnp.round):
    """The same number as a pair that compares part by part, its second part rounded to 2**-32.

    For |high + low| of about 1 at most. The rounding lets tokens that repeat each other tie, which
    the rule "lowest index first" then resolves, instead of the last bits of the arithmetic.
    """
    total = high + low
    rest = low - (total - high)
    return total, round_to_even(rest * 2.0**32) * 2.0**-32


def cosines(high, low, rows, columns, **settled):
    """Cosines [..., R, C], settled, from inner products [..., R, C] and pairs of `inverse_sqrt`,
    of rows [..., R, 1] and of columns [..., 1, C].
    """
    return settle(*multiply(*multiply(high, low, *columns), *rows), **settled)
