"""What the optimiser is told of parameters by their paths: to which weight decay applies, how deep
they lie, and which have a learning rate of their own.
"""

import re
from typing import Any

import jax
import numpy as np

from mim_jax.errors import UserError
from mim_jax.sharding import path_name

# Parameters that are neither kernels nor biases or scales, by a part of their path.
TOKENS_AND_TABLES = ('class_token', 'mask_token', 'registers', 'position', 'relative_position')
NO_DECAY = r'(bias|scale)'


def weight_decayed(params: Any, *, also: tuple[str, ...] = ()) -> Any:
    """Tree of bool over `params`: biases, scales, 1-D parameters, tokens and tables are not
    decayed, except for those of TOKENS_AND_TABLES that `also` names.
    """

    def decayed(path: tuple, leaf: Any) -> bool:
        name = path_name(path)
        # The first that is found: a position table's own entry for the class token is its part.
        special = re.search(rf'(?:^|/)({"|".join(TOKENS_AND_TABLES)})(?:/|$)', name)
        if special is not None:
            return special.group(1) in also
        stacked = re.search(r'(^|/)blocks/', name) is not None
        return leaf.ndim - stacked > 1 and not re.search(NO_DECAY, name)

    return jax.tree_util.tree_map_with_path(decayed, params)


def layers(params: Any, *, depth: int) -> Any:
    """Tree over `params` of layer ids for layer-wise decay: 0 the embedding, 1 to depth the
    encoder's blocks (an array for stacked ones), depth + 1 everything after them, and (as in BEiT's
    code) the relative position table that all of them share.
    """

    def layer(path: tuple, leaf: Any) -> Any:
        name = path_name(path)
        if name.startswith('encoder/blocks/'):
            return np.arange(1, depth + 1)
        if re.match(r'encoder/(?!final_norm|relative_position)', name):
            return 0
        return depth + 1

    return jax.tree_util.tree_map_with_path(layer, params)


def constant_rates(params: Any, *, rules: tuple[tuple[str, float], ...]) -> dict[str, float]:
    """Learning rates that do not follow the schedule, by the paths of their parameters: each has
    that of the first of `rules` (expression for `re.search`, rate) that its path fits.

    Raises UserError where a rule is for no parameter.
    """
    names = [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    found, used = {}, set()
    for name in names:
        for expression, rate in rules:
            if re.search(expression, name):
                found[name] = rate
                used.add(expression)
                break
    for expression, _ in rules:
        if expression not in used:
            raise UserError(
                f'config.optimizer.constant_rates: {expression!r} is for no parameter that is '
                'trained, or rules before it are for all of them; `python -m mim_jax.preflight '
                '--parameters`, without this rule, lists the paths.'
            )
    return found
