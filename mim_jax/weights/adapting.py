"""An encoder's parameters for another encoder of the same blocks: other grid, tables and tokens."""

import dataclasses
from typing import Any

import numpy as np

from mim_jax.errors import UserError
from mim_jax.models.positions import resize_table, sincos_table
from mim_jax.models.vit import ViT
from mim_jax.weights import fitting, native

# Parts that one encoder may have and the other not: a fine-tuned network has no mask token, one
# that pools before its norm no final norm, and only CLIP's file a projection.
OPTIONAL = (
    'mask_token',
    'class_token',
    'registers',
    'final_norm/',
    'projection/',
    'position/',
    'relative_position/',
    'blocks/relative_position/',
)
# The fields of these parts, checked by the parts themselves.
FREE = (
    'class_token',
    'num_registers',
    'final_norm',
    'position',
    'position_resize',
    'relative_position',
)
# A fixed table can be written as a learned one; a learned one has no other place.
POSITIONS = {('sincos', 'learned'), ('none', 'learned')}
SHARED, PER_BLOCK = 'relative_position/', 'blocks/relative_position/'


@dataclasses.dataclass(frozen=True)
class Adapted:
    """Parameters for the new encoder, as far as the old one gives them, and how it gave them.

    params: nested, float32 NumPy. taken: names of those that are as they were. resized: texts of
    tables on another grid. made: texts of what was added up or written down. fresh: names of the
    new encoder's that are not in `params`. left_out: names of the old one's without a place.
    """

    params: dict[str, Any]
    taken: tuple[str, ...]
    resized: tuple[str, ...]
    made: tuple[str, ...]
    fresh: tuple[str, ...]
    left_out: tuple[str, ...]


def adapt(
    stated: dict[str, Any], params: dict[str, Any], model: ViT, expected: Any, *, what: str
) -> Adapted:
    """The parameters of one encoder for `model`.

    Tables of positions come to the new grid by `model.position_resize`, relative ones by the rule
    by which a network itself reads them (bilinear). A relative table that all blocks share is added
    to each block's own where the new encoder has only those: the recipe by which BEiT and DTM are
    fine-tuned.

    Args:
        stated: ViT fields of the old encoder, {} where nothing states them.
        params: its parameters, nested.
        model: the new encoder.
        expected: the new encoder's parameters, arrays or ShapeDtypeStructs.
        what: the old encoder's name in sentences.

    Raises:
        UserError: it is none, or of another width, depth, number of heads, patch or function.
    """
    old = {n: np.asarray(value, np.float32) for n, value in native.flatten(params).items()}
    new = {name: tuple(value.shape) for name, value in native.flatten(expected).items()}
    if 'patch_embed/kernel' not in old:
        raise UserError(f'{what} holds no encoder: patch_embed/kernel is missing')
    _check(stated, old, model, new, what=what)
    found, resized, made, used = {}, [], [], set()

    def on_grid(source, name):
        """The old table `source` in the shape of the new `name`."""
        table, shape = old[source], new[name]
        used.add(source)
        if not source.endswith('position/patches') or table.shape[-3:-1] == shape[-3:-1]:
            return table
        relative = 'relative_position' in source
        method = 'bilinear' if relative else model.position_resize
        sizes = [
            'x'.join(str((n + 1) // 2 if relative else n) for n in s[-3:-1])
            for s in (table.shape, shape)
        ]
        resized.append(f'{source} from the grid {sizes[0]} to {sizes[1]} ({method})')

        def resize(one):
            return np.asarray(resize_table(one, shape[-3:-1], method=method))

        return np.stack([resize(t) for t in table]) if table.ndim == 4 else resize(table)

    for name in new:
        if name in old:
            found[name] = on_grid(name, name)
    taken = tuple(name for name in found if found[name] is old[name])
    if _any(old, SHARED) and not _any(new, SHARED):
        for name in new:
            source = SHARED + name.removeprefix(PER_BLOCK)
            if name.startswith(PER_BLOCK) and source in old:
                shared = np.broadcast_to(on_grid(source, name), new[name])
                found[name] = found[name] + shared if name in found else shared
                made.append(f"{source} added to every block's own")
    if stated.get('position') == 'sincos' and 'position/patches' in new:
        grid = new['position/patches'][:2]
        found['position/patches'] = sincos_table(grid, model.width)
        if 'position/class_token' in new:
            found['position/class_token'] = np.zeros(new['position/class_token'], np.float32)
        made.append('position written down as a learned table')
    _check_shapes(found, new, what=what)
    return Adapted(
        params=native.unflatten(found),
        taken=tuple(name for name in taken if found[name] is old[name]),
        resized=tuple(resized),
        made=tuple(made),
        fresh=tuple(name for name in new if name not in found),
        left_out=tuple(name for name in old if name not in used),
    )


def _check(stated, old, model, new, *, what):
    """Refuses an encoder of another function, or one that lacks or adds more than OPTIONAL."""
    if 'patch_size' in stated and tuple(stated['patch_size']) == tuple(model.patch_size):
        area = model.patch_size[0] * model.patch_size[1]
        channels = [names['patch_embed/kernel'] for names in (_shapes(old), new)]
        theirs, ours = (shape[0] // area for shape in channels)
        if theirs != ours:
            raise UserError(f'{what} sees {theirs} channels, the images of the config have {ours}')
    compared = {name: value for name, value in stated.items() if name not in FREE}
    positions = stated.get('position', model.position), model.position
    if positions[0] != positions[1] and positions not in POSITIONS:
        compared['position'] = stated['position']
    fitting.compare_models(compared, model, what=what)
    kept = _any(new, PER_BLOCK) or (_any(new, SHARED) and not _any(old, PER_BLOCK))
    if (_any(old, SHARED) or _any(old, PER_BLOCK)) and not kept:
        raise UserError(
            f'{what} has relative position tables for which the encoder of the config has no '
            "place: set config.model.relative_position to 'per_block', which takes shared ones too"
        )
    required = [name for name in new if name not in old and not name.startswith(OPTIONAL)]
    surplus = [name for name in old if name not in new and not name.startswith(OPTIONAL)]
    for names, verb in ((required, 'lacks'), (surplus, 'has what the config does not:')):
        if names:
            raise UserError(f'{what} is of another model: it {verb} {native.some(names)}')


def _check_shapes(found, new, *, what):
    shapes = [
        f'{name} {value.shape} instead of {new[name]}'
        for name, value in found.items()
        if value.shape != new[name]
    ]
    if shapes:
        raise UserError(f'{what} is of another model: {native.some(shapes)}')


def _shapes(arrays):
    return {name: array.shape for name, array in arrays.items()}


def _any(names, prefix):
    return any(name.startswith(prefix) for name in names)
