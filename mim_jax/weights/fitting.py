"""Whether weights fit a model: by its fields, by the names and shapes of its parameters."""

import dataclasses

from mim_jax.errors import UserError
from mim_jax.weights import native


def compare_models(stated, model, *, what):
    """Refuses weights, called `what`, whose own model fields say another function than `model`."""
    ours = dataclasses.asdict(model)
    free = ('drop_path', 'attention_dropout', 'initialization', 'token_initialization')
    free += ('mask_token', 'grid', 'scan', 'remat', 'dtype', 'attention_kernel')
    differ = [
        f'{name} is {_plain(stated[name])!r} there, {_plain(ours[name])!r} in the config'
        for name in ours
        if name in stated and name not in free and _plain(stated[name]) != _plain(ours[name])
    ]
    # Whether layer scale exists matters; its initial value does not.
    if None not in (stated.get('layer_scale'), ours['layer_scale']):
        differ = [d for d in differ if not d.startswith('layer_scale ')]
    if differ:
        raise UserError(f'{what} is of another model: {"; ".join(differ)}')


def open_tables(expected, model):
    """Leaves the size of position tables to the file, unless the config states their grid."""
    if model.grid is not None:
        return expected
    flat = native.flatten(expected)
    for name, value in flat.items():
        if name.endswith('position/patches'):
            shape = list(value.shape)
            shape[-3:-1] = None, None
            flat[name] = _Shape(tuple(shape))
    return native.unflatten(flat)


def check_params(params, expected, *, what):
    """Raises UserError, listing names, unless `params` has the names and shapes of `expected`.

    `expected` holds arrays or ShapeDtypeStructs; a size of None in a shape accepts any.
    """
    have = {name: tuple(value.shape) for name, value in native.flatten(params).items()}
    want = {name: tuple(value.shape) for name, value in native.flatten(expected).items()}
    missing = [name for name in want if name not in have]
    unexpected = [name for name in have if name not in want]
    shapes = [
        f'{name} {have[name]} instead of {want[name]}'
        for name in want
        if name in have and not _fits(have[name], want[name])
    ]
    problems = [
        f'{kind}: {native.some(names)}'
        for kind, names in (
            ('missing', missing),
            ('unexpected', unexpected),
            ('wrong shape', shapes),
        )
        if names
    ]
    if problems:
        raise UserError(f'{what} does not fit the model; {"; ".join(problems)}')


def _fits(have, want):
    return len(have) == len(want) and all(
        n is None or m == n for m, n in zip(have, want, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class _Shape:
    shape: tuple


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
