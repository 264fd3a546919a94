"""How a project names an encoder's weights, and what the names and shapes of a file tell."""

import dataclasses
import math
import re
from collections.abc import Callable

import jax
import numpy as np

from mim_jax.errors import UserError
from mim_jax.models.positions import sincos_table
from mim_jax.models.vit import ViT
from mim_jax.weights import mapping, native

ACTIVATIONS = {
    'gelu': 'gelu',
    'quick_gelu': 'quick_gelu',
    'gelu_new': 'gelu_tanh',
    'gelu_tanh': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
}
# Published encoders whose heads are not 64 wide: MAE's and CLIP's huge, giant and bigger sizes.
HEADS = {1280: 16, 1408: 16, 1664: 16}
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
# Buffers that can be computed, of any project.
BUFFERS = r'(^|\.)(position_ids|relative_position_index|attn_mask|num_batches_tracked)$'


@dataclasses.dataclass(frozen=True)
class Source:
    """The tensors of a file whose names began with `prefix`, without it, and the stated facts.

    stated: what configuration files say in our words (`hub_config.stated`), possibly empty.
    others: names in the file that began otherwise.
    """

    tensors: dict[str, np.ndarray]
    prefix: str = ''
    stated: dict = dataclasses.field(default_factory=dict)
    others: tuple[str, ...] = ()

    @classmethod
    def of(cls, tensors, *, prefix, stated):
        """The part of a file's tensors whose names begin with `prefix`."""
        own = {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}
        others = tuple(name for name in tensors if not name.startswith(prefix))
        return cls(own, prefix, stated, others)

    def has(self, pattern) -> bool:
        """Whether a name matches."""
        return any(re.search(pattern, name) for name in self.tensors)

    def shape(self, name, axes) -> tuple[int, ...]:
        """The shape, of so many axes, of a tensor that the naming cannot do without."""
        if name not in self.tensors:
            raise UserError(f'missing: {self.prefix}{name}')
        shape = tuple(self.tensors[name].shape)
        if len(shape) != axes:
            raise UserError(f'wrong shape: {self.prefix}{name} {list(shape)}, not of {axes} axes')
        if 0 in shape:
            raise UserError(f'wrong shape: {self.prefix}{name} {list(shape)} holds nothing')
        return shape

    def count(self, pattern) -> int:
        """One more than the largest number that the group of `pattern` matches; 0 if none."""
        found = (re.search(pattern, name) for name in self.tensors)
        return max((int(match[1]) + 1 for match in found if match), default=0)

    def grid(self, entries, *, patch_size, count=lambda rows, columns: rows * columns):
        """Rows and columns of the grid whose table has `entries` by `count`: as stated, or square.

        Raises UserError where the table is of another grid.
        """
        grids = []
        if self.stated.get('grid'):
            grids.append(tuple(self.stated['grid']))
        if self.stated.get('image_size'):
            size = self.stated['image_size']
            grids.append((size[0] // patch_size[0], size[1] // patch_size[1]))
        grids += [(side, side) for side in range(1, entries + 1) if count(side, side) <= entries]
        for grid in grids:
            if count(*grid) == entries:
                return grid
        raise UserError(
            f'a position table of {entries} entries is not that of a square grid, and no config '
            'states another that fits: give --model.grid=ROWS,COLUMNS'
        )


def relative_count(rows, columns) -> int:
    """Entries of BEiT's flat relative-position table: offsets, and three for the class token."""
    return (2 * rows - 1) * (2 * columns - 1) + 3


@dataclasses.dataclass(frozen=True)
class Naming:
    """A project's names of an encoder.

    mark: a pattern of one name that a file of this naming has; its first group is what stands
        before the encoder's own names. Namings are tried in the order of `NAMINGS`.
    fields: Source -> the ViT's fields that names and shapes tell.
    rules: (ViT, Source) -> the rules of `mapping`, for names without the prefix.
    family: Source -> the word for the metadata ('clip', 'mae', ...).
    assumed: fields that neither names nor shapes tell, where no config states them.
    left_out: a pattern of full names that belong to other uses of the file.
    projection: Source -> width of the image projection, or None.
    normalization: Source -> (mean, std) where no file states them.
    """

    name: str
    mark: str
    fields: Callable
    rules: Callable
    family: Callable
    assumed: dict
    left_out: str
    projection: Callable = lambda source: None
    normalization: Callable = lambda source: IMAGENET


@dataclasses.dataclass(frozen=True)
class Recognised:
    """An encoder found in a file, not yet read: `match` says whether it fits."""

    naming: Naming
    family: str
    model: ViT
    source: Source
    rules: tuple
    match: mapping.Match
    projection: int | None
    assumed: dict

    def read(self):
        """(ViT, params); a learned table that is the fixed one becomes `position='sincos'`."""
        params = mapping.read(self.source.tensors, self.rules, depth=self.model.depth)
        if self.model.position == 'learned' and _is_sincos(params):
            del params['position']
            return dataclasses.replace(self.model, position='sincos'), params
        return self.model, params


def recognise(tensors, namings, *, stated, overrides, what) -> Recognised:
    """The encoder in `tensors` by name, in the first of `namings` whose mark is there.

    stated: facts of configuration files in our words; overrides: fields of the ViT given by hand.
    Raises UserError where no naming fits or the fields make no ViT.
    """
    for naming in namings:
        prefixes = {m[1] for m in (re.search(naming.mark, name) for name in tensors) if m}
        if prefixes:
            prefix = min(prefixes, key=len)
            break
    else:
        known = ', '.join(dict.fromkeys(naming.name for naming in namings))
        raise UserError(
            f'{what} holds none of the encoders that can be read ({known}); '
            f'its names are {native.some(sorted(tensors))}'
        )
    source = Source.of(tensors, prefix=prefix, stated={**stated, **overrides})
    try:
        told = naming.fields(source)
        fields = {**naming.assumed, **told}
        assumed = {k: v for k, v in naming.assumed.items() if k not in told}
        for name in ('heads', 'activation', 'norm_eps'):
            if name in source.stated:
                fields[name] = source.stated[name]
                assumed.pop(name, None)
        if 'heads' not in fields:
            fields['heads'] = assumed['heads'] = default_heads(fields['width'])
        model = native.built(ViT, {**fields, **overrides}, what='it')
        if 'position' not in overrides and {model.position, model.relative_position} == {'none'}:
            raise UserError(
                'it holds no positions, as an encoder with rotary ones, which are not supported; '
                'if it has none at all, give --model.position=none'
            )
    except (UserError, ValueError) as error:
        raise UserError(f'{what}, {naming.name}: {error}') from error
    rules = tuple(naming.rules(model, source))
    projection = naming.projection(source)
    needed = mapping.needed_shapes(_shapes(model, projection), rules, depth=model.depth)
    match = mapping.match(
        {name: tensor.shape for name, tensor in tensors.items()},
        {prefix + name: shape for name, shape in needed.items()},
        left_out=f'{naming.left_out}|{BUFFERS}',
    )
    return Recognised(
        naming, naming.family(source), model, source, rules, match, projection, assumed
    )


def ratio(hidden, width) -> float:
    """The `mlp_ratio` whose product with `width` rounds down to `hidden`."""
    value = hidden / width
    return value if int(width * value) == hidden else math.nextafter(value, math.inf)


def default_heads(width) -> int:
    """Heads of a published encoder of this width: 64 wide but for a few sizes."""
    if width not in HEADS and width % 64:
        raise UserError(
            f'the number of heads of a width of {width} cannot be told from the file: '
            'give --model.heads=COUNT'
        )
    return HEADS.get(width, width // 64)


def _shapes(model, projection):
    """Shapes of our parameters by flat name, for images of 3 channels; none is computed."""
    p, q = model.patch_size
    rows, columns = model.grid or (1, 1)
    images = jax.ShapeDtypeStruct((1, rows * p, columns * q, 3), np.float32)
    params = jax.eval_shape(lambda: model.init(jax.random.key(0), images))['params']
    shapes = {name: value.shape for name, value in native.flatten(params).items()}
    if projection is not None:
        shapes['projection/kernel'] = (model.width, projection)
    return shapes


def _is_sincos(params):
    table = np.asarray(params['position']['patches'])
    first = params['position'].get('class_token', np.zeros(()))
    return (
        table.shape[-1] % 4 == 0
        and not np.any(first)
        and np.allclose(table, sincos_table(table.shape[:2], table.shape[-1]), atol=1e-5)
    )
