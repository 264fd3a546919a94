"""What a frozen teacher sees in photos, and what morphing makes of it: one sheet for any photos."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.data import crops, decode, resample
from mim_jax.errors import UserError
from mim_jax.models.patches import patch_grid
from mim_jax.morphing import Morphing, morph
from mim_jax.teachers import Loaded
from mim_jax.visualize import layout, pictures

NUM_SCHEDULES = 5
# Of these schedules the one that morphs the target: strong enough to be seen in its colours.
SHOWN = 3


def whole_patches(
    size: tuple[int, ...], *, of: tuple[int, int], patch_size: tuple[int, int]
) -> tuple[int, int]:
    """(height, width) in pixels for a photo of the shape `of`: `size` (H, W) itself, or from `size`
    (S,) the photo's own shape with a shorter side S; each side rounded to whole patches, one at
    least.
    """
    if len(size) == 1:
        size = [size[0] / min(of) * side for side in of]
    return tuple(max(1, round(s / p)) * p for s, p in zip(size, patch_size, strict=True))


def read_photo(
    path: str | Path, *, size: tuple[int, ...], patch_size: tuple[int, int], channels: int
) -> np.ndarray:
    """uint8 [H,W,channels] of an image file, scaled and centre-cropped to `whole_patches`.

    Raises UserError where the file cannot be read.
    """
    try:
        photo = decode.decode(Path(path).read_bytes(), channels=channels)
    except OSError as error:
        raise UserError(f'--images={path} cannot be read: {error.strerror}') from error
    except decode.CorruptImage as error:
        raise UserError(f'--images={path} cannot be read: {error}') from error
    height, width = photo.shape[:2]
    size = whole_patches(size, of=(height, width), patch_size=patch_size)
    box = crops.centre_box(height=height, width=width, size=size, share=1.0)
    return resample.resize(photo, size, box=box)


def teacher_sheet(
    loaded: Loaded, photos: list[np.ndarray], *, heading: str | None = None
) -> np.ndarray:
    """A uint8 sheet with one row per photo uint8 [H,W,C], each of whole patches and of its own
    size: the photo, the teacher's tokens, their groups at NUM_SCHEDULES schedules, morphed tokens.

    Tokens and morphed tokens of all photos are coloured by one set of principal components: equal
    colours mean alike tokens all over the sheet. The schedules are `Morphing`'s examples.
    """
    params = jax.device_put(loaded.params)
    seen = [jax.device_get(_see(params, p[None], teacher=loaded.teacher)) for p in photos]
    every = np.concatenate([tokens[0] for tokens, _, _ in seen])
    largest = np.max([photo.shape[:2] for photo in photos], axis=0)
    scale = layout.panel_scale(*largest)
    rows = []
    for photo, (tokens, groups, target) in zip(photos, seen, strict=True):
        size = photo.shape[:2]
        grid = patch_grid(size, loaded.teacher.model.patch_size)
        tokens, target = (
            pictures.to_pixels(pictures.pca_colors(x, like=every), grid=grid, size=size)
            for x in (tokens, target)
        )
        image = pictures.to_rgb(photo[None])
        # The default grouping protects the first token.
        options = {'grid': grid, 'scale': scale, 'protected': np.zeros(1, int)}
        painted = [pictures.paint_groups(image, g, **options) for g in groups]
        rows.append(
            [pictures.on_canvas(x, largest) for x in (image, tokens)]
            + [pictures.on_canvas(x, largest * scale) for x in painted]
            + [pictures.on_canvas(target, largest)]
        )
    columns = [np.concatenate(column) for column in zip(*rows, strict=True)]
    left = np.mean([groups.max(axis=(1, 2)) + 1 for _, groups, _ in seen], axis=0)
    left /= np.mean([groups.shape[2] for _, groups, _ in seen])
    titles = [f'groups: {share:.0%} of tokens' for share in left]
    shown = f'morphed target ({left[SHOWN]:.0%})'
    return layout.sheet(
        columns,
        titles=['photo', "teacher's tokens", *titles, shown],
        heading=heading,
        legend=[*pictures.group_keys(protected=True), pictures.TOKENS_KEY],
    )


@functools.partial(jax.jit, static_argnames='teacher')
def _see(params, images, *, teacher):
    """Tokens [1,N,D], groups [S,1,N] from weak to strong, and morphed tokens [1,N,D]."""
    tokens = teacher.tokens(params, images.astype(jnp.float32) / 255)
    groups, _ = Morphing().examples(tokens, num=NUM_SCHEDULES)
    return tokens, groups, morph(tokens, groups[SHOWN])
