"""What a batch is made of: the one place where views and fields become names, shapes and dtypes."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from mim_jax.data.config import DataConfig
from mim_jax.data.fields import Field, find
from mim_jax.data.view import Colors, View
from mim_jax.errors import UserError

Views = Mapping[str, View]
# What a batch holds beside views and fields: the pipeline's notes, and the step's random keys.
RESERVED = ('corrupt', 'index', 'valid', 'keys')


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """Shape and dtype of an array."""

    shape: tuple[int, ...]
    dtype: np.dtype


def batch_spec(
    config: DataConfig, views: Views, fields: tuple[Field, ...], *, batch_size: int | None = None
) -> dict[str, ArraySpec]:
    """The arrays of a batch as read, before the device's half (`augment.augment_views`).

    For every view NAME that is read: `NAME` uint8 [B,height,width,C], `NAME_MAP` [B,height,width]
    for each of its maps, `NAME_boxes` float32 [B,4] if it asks for them. For every value field
    NAME of the source: `NAMEs` [B,…]. B is `config.batch_size` unless another is given.

    Raises:
      UserError: as `check_views`.
    """
    check_views(config, views, fields)
    count = batch_size or config.batch_size
    spec = {}
    for name, view in views.items():
        if view.like is not None:
            continue
        size = count, *view.image_size
        spec[name] = ArraySpec((*size, config.channels), np.dtype(np.uint8))
        for map_name in view.maps:
            spec[f'{name}_{map_name}'] = ArraySpec(size, np.dtype(find(fields, map_name).dtype))
        if view.boxes:
            spec[f'{name}_boxes'] = ArraySpec((count, 4), np.dtype(np.float32))
    for field in fields:
        if field.kind == 'value':
            spec[field.plural] = ArraySpec((count, *field.shape), np.dtype(field.dtype))
    return spec


def check_views(
    config: DataConfig,
    views: Views,
    fields: tuple[Field, ...],
    *,
    data: str = 'the data',
    hint: str = 'another config.data.source, or more of its section, may bring it',
) -> None:
    """Checks that views can be made of a source with these fields; `data` is what it is called,
    `hint` how a missing field is brought.

    Raises:
      UserError: one sentence on the first view that cannot.
      ValueError: there is no view `images` of the model's size, which every part of a run sees.
    """
    if 'images' not in views or views['images'].like is not None:
        raise ValueError("an objective's views must include 'images', not like another one")
    if views['images'].image_size != tuple(config.image_size):
        raise ValueError("the view 'images' must have the size config.data.image_size")
    keys = [*RESERVED, *(field.plural for field in fields if field.kind == 'value')]
    for name, view in views.items():
        if view.like is not None:
            _check_like(name, view, views)
        else:
            wanted = [('image', view.of), *(('map', map_name) for map_name in view.maps)]
            for kind, field_name in wanted:
                _check_field(name, field_name, kind, fields, data, hint)
        keys += [name, *(f'{name}_{m}' for m in view.maps)]
        keys += [f'{name}_boxes', f'{name}_flipped'] if view.boxes else []
    for key in keys:
        if keys.count(key) > 1:
            raise UserError(f'two parts of a batch are called {key!r}: rename a view or a field')


def _check_field(view_name, name, kind, fields, data, hint):
    field = find(fields, name)
    if field is not None and field.kind == kind:
        return
    is_what = 'does not have' if field is None else f'has as {field.kind}, not as {kind}'
    had = ', '.join(f'{f.name} ({f.kind})' for f in fields)
    raise UserError(
        f'the view {view_name!r} of this objective needs the {kind} {name!r}, which {data} '
        f'{is_what}: its fields are {had}; {hint}.'
    )


def _check_like(name, view, views):
    other = views.get(view.like)
    if other is None or other.like is not None:
        raise UserError(
            f'the view {name!r} of this objective is like {view.like!r}, which is no view with '
            f'pixels of its own: there are {", ".join(n for n in views if views[n].like is None)}'
        )
    if view.image_size != other.image_size or view.of != other.of:
        raise UserError(
            f'the view {name!r} of this objective shows {view.of!r} at {view.image_size} and is '
            f'like {view.like!r}, which shows {other.of!r} at {other.image_size}: a view like '
            f'another has its pixels'
        )
    if view.maps or view.boxes or view.transforms:
        raise UserError(
            f'the view {name!r} of this objective is like {view.like!r}: ask that one for maps, '
            f'boxes and transforms'
        )


def eval_views(config: DataConfig, views: Views) -> dict[str, View]:
    """The views as evaluators and pictures see them.

    `images` is the centre of the picture by `config.eval_crop`, plain. The others keep crop and
    colours and are not flipped, so that a place in one can be found in another.
    """
    plain = views['images']
    crop = plain.crop
    share = config.eval_crop
    if share is None and crop.mode != 'none':
        by_mode = {'random': 0.875, 'simple': 1 / crop.resize, 'centre': crop.share}
        share = by_mode.get(crop.mode, 1.0)
    if share is not None:
        crop = dataclasses.replace(crop, mode='centre', share=share)
    changed = {name: dataclasses.replace(view, flip=0.0) for name, view in views.items()}
    changed['images'] = dataclasses.replace(
        plain, crop=crop, flip=0.0, colors=Colors(), transforms=()
    )
    return changed
