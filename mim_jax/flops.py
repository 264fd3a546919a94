"""How many floating-point operations a traced function asks for.

Counted from the jaxpr, because XLA's own count takes the body of a loop once however often it runs.
"""

import math
from typing import Any

import jax
from jax.extend import core


def matmul_flops(jaxpr: Any) -> int:
    """FLOPs of all matrix products and convolutions in a jaxpr: 2 per multiply-add.

    A scan counts its body once per iteration, a branch its most expensive side, a loop with a
    traced trip count its body once. Work that rematerialisation repeats is counted as written, so
    trace without it for a model's own FLOPs.
    """
    jaxpr = getattr(jaxpr, 'jaxpr', jaxpr)
    total = 0
    for equation in jaxpr.eqns:
        name = equation.primitive.name
        if name == 'dot_general':
            (contract, _), _ = equation.params['dimension_numbers']
            shape = equation.invars[0].aval.shape
            total += 2 * equation.outvars[0].aval.size * math.prod(shape[d] for d in contract)
        elif name == 'conv_general_dilated':
            kernel = equation.invars[1].aval
            out_features = equation.params['dimension_numbers'].rhs_spec[0]
            per_output = kernel.size // kernel.shape[out_features]
            total += 2 * equation.outvars[0].aval.size * per_output
        elif name == 'cond':
            total += max(matmul_flops(branch) for branch in equation.params['branches'])
        else:
            repeats = equation.params['length'] if name == 'scan' else 1
            total += repeats * sum(map(matmul_flops, _inner(equation.params)))
    return total


def _inner(params: dict[str, Any]) -> list[Any]:
    leaves = jax.tree.leaves(list(params.values()), is_leaf=_is_jaxpr)
    return [leaf for leaf in leaves if _is_jaxpr(leaf)]


def _is_jaxpr(value: Any) -> bool:
    return isinstance(value, (core.Jaxpr, core.ClosedJaxpr))
