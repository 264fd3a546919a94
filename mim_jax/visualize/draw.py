"""From an objective and its variables to pictures, and from pictures to files."""

import functools
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax import keys, panels, sharding, storage
from mim_jax.data import Crop, View, Views
from mim_jax.data.augment import augment_views
from mim_jax.errors import UserError
from mim_jax.visualize.pictures import render


def draw(
    objective: Any,
    variables: dict[str, Any],
    batch: dict[str, np.ndarray] | np.ndarray,
    *,
    views: Views | None = None,
    step: int = 0,
    seed: int = 0,
    mesh: jax.sharding.Mesh | None = None,
    run: str | None = None,
) -> dict[str, np.ndarray]:
    """Named uint8 [H',W',3] sheets of what an objective does to a host batch.

    batch: as read, in `views`, which are those of `data.eval_views`; or images uint8 [B,H,W,C]
    alone, where `views` is None.

    All that is random is drawn from `seed` alone, so that sheets of different steps show the same
    masks on a network that changes; `step` and the name `run` stand above them. `mesh` is where the
    variables live; with several processes all of them must call, with the same batch, and all get
    the sheets. Calls for one objective and batches of one shape compile once.
    """
    # Host values: with several processes JAX takes them as the same on each, as they are here.
    if views is None:
        batch = {'images': batch}
        views = {'images': View(crop=Crop(mode='none'), image_size=batch['images'].shape[1:3])}
    inputs = batch, np.int32(seed), np.int32(step)
    static = {'objective': objective, 'views': tuple(views.items()), 'mesh': mesh}
    seen = jax.device_get(_see(variables, *inputs, **static))
    seen['features'] = seen.pop('features')  # the objective's own sheets come first
    heading = f'{run}, step {step:,}' if run else f'step {step:,}'
    return render(seen, batch['images'], grid=objective.grid, heading=heading)


def write(folder: str | os.PathLike, sheets: dict[str, np.ndarray], *, step: int) -> list[Path]:
    """Writes every sheet as FOLDER/NAME_STEP.png (six digits) and returns the paths.

    Raises UserError where that is not possible.
    """
    paths = [storage.path(folder) / f'{name}_{step:06d}.png' for name in sheets]
    for path, sheet in zip(paths, sheets.values(), strict=True):
        write_png(path, sheet)
    return paths


def write_png(path: str | os.PathLike, sheet: np.ndarray) -> None:
    """Writes a uint8 [H,W,3] sheet, and the folders above it where they are missing.

    Raises UserError where that is not possible.
    """
    import cv2

    path = storage.path(path)
    # OpenCV's own choice is fast and makes files of photos and flat panels several times larger.
    data = cv2.imencode('.png', sheet[..., ::-1], [cv2.IMWRITE_PNG_COMPRESSION, 6])[1]
    try:
        storage.make_folder(path.parent)
        path.write_bytes(data.tobytes())
    except OSError as error:
        raise UserError(f'{path} cannot be written: {error.strerror}.') from error


@functools.partial(jax.jit, static_argnames=('objective', 'views', 'mesh'))
def _see(variables, batch, seed, step, *, objective, views, mesh):
    look = functools.partial(_look, objective=objective, views=dict(views))
    if mesh is None:
        return look(variables, batch, seed, step)
    seen = sharding.on_mesh(look, mesh)(variables, batch, seed, step)
    return jax.lax.with_sharding_constraint(seen, sharding.replicated(mesh))


def _look(variables, batch, seed, step, *, objective, views):
    key = jax.random.key(seed)
    batch = {**batch, 'keys': keys.per_example(key, len(batch['images']))}
    batch = augment_views(batch['keys'], batch, views)
    images = batch['images']
    seen = dict(objective.pictures(variables, batch, key, step))
    tokens = objective.features(variables, images).tokens.astype(jnp.float32)
    seen['features'] = [panels.Tokens(tokens, title='features (PCA)')]
    return seen
