"""How many floating-point operations a traced function asks for.

Counted from the jaxpr, because XLA's own count takes the body of a loop once however often it runs.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
from jax.extend import core


@dataclasses.dataclass(frozen=True)
class Product:
    """A matrix product or convolution, over all its repetitions.

    Attributes:
        path: the scopes, transformations and jitted functions that it stands in, outermost first,
            such as `transpose(jvp(student))/…`.
        flops: 2 per multiply-add.
        moved: bytes of operands and result. Of a batched product, squares (the weights of
            attention, the inner products of an image's tokens) do not count: a fused kernel never
            writes them to memory.
    """

    path: str
    flops: float
    moved: float


def matmul_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products and convolutions in a jaxpr, see `products`."""
    return sum(product.flops for product in products(jaxpr))


def products(jaxpr: Any, *, loop_steps: float = 1) -> list[Product]:
    """All matrix products and convolutions in a jaxpr.

    A scan counts its body once per iteration, a kernel once per program, what every device does for
    itself once per device, a branch its most expensive side, a loop with a traced trip count its
    body `loop_steps` times. Work that rematerialisation or a kernel repeats is counted as written,
    so trace without them for a model's own FLOPs.
    """
    return list(_products(jaxpr, '', 1, loop_steps))


def _products(jaxpr: Any, path: str, times: float, loop_steps: float) -> Iterator[Product]:
    for equation in getattr(jaxpr, 'jaxpr', jaxpr).eqns:
        name, params = equation.primitive.name, equation.params
        inside = _join(path, str(equation.source_info.name_stack))
        if name in ('dot_general', 'conv_general_dilated'):
            flops = _dot_flops(equation) if name == 'dot_general' else _conv_flops(equation)
            yield Product(inside, times * flops, times * _moved(equation))
        elif name == 'cond':
            sides = [
                list(_products(side, inside, times, loop_steps)) for side in params['branches']
            ]
            yield from max(sides, key=lambda side: sum(product.flops for product in side))
        else:
            repeats = _repeats(name, params, loop_steps)
            if name in ('jit', 'pjit'):
                inside = _join(inside, params['name'])
            for inner in _inner(params):
                yield from _products(inner, inside, times * repeats, loop_steps)


def _repeats(name: str, params: dict[str, Any], loop_steps: float) -> float:
    """How often the jaxprs in an equation's parameters run."""
    if name == 'scan':
        return params['length']
    if name == 'pallas_call':
        return math.prod(params['grid_mapping'].grid)
    if name == 'shard_map':
        return params['mesh'].size
    return loop_steps if name == 'while' else 1


def _join(*names: str) -> str:
    return '/'.join(filter(None, names))


def _dot_flops(equation: Any) -> int:
    (contract, _), _ = equation.params['dimension_numbers']
    shape = equation.invars[0].aval.shape
    return 2 * equation.outvars[0].aval.size * math.prod(shape[d] for d in contract)


def _conv_flops(equation: Any) -> int:
    kernel = equation.invars[1].aval
    out_features = equation.params['dimension_numbers'].rhs_spec[0]
    per_output = kernel.size // kernel.shape[out_features]
    return 2 * equation.outvars[0].aval.size * per_output


def _moved(equation: Any) -> int:
    arrays = [x.aval for x in (*equation.invars, *equation.outvars)]
    dimensions = equation.params['dimension_numbers']
    if equation.primitive.name == 'dot_general' and dimensions[1][0]:
        arrays = [x for x in arrays if x.shape[-1] != x.shape[-2]]
    return sum(x.size * x.dtype.itemsize for x in arrays)


def _inner(params: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
    return [leaf for leaf in leaves if _is_jaxpr(leaf)]


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
