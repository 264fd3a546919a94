"""Masked image modelling in JAX/Flax, for TPU and GPU.

    encoder = mim_jax.load('runs/quickstart')
    features = encoder.features(images)

Importing it loads no JAX; see docs/api.md.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mim_jax.errors import UserError

if TYPE_CHECKING:
    import jax

    from mim_jax.api import Encoded, Encoder

__all__ = ['Encoded', 'Encoder', 'UserError', 'load']


def load(
    path: str | Path,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    image_size: int | tuple[int, int] | None = None,
    model: Mapping[str, Any] | None = None,
    step: int | None = None,
    average: bool | None = None,
    devices: Sequence['jax.Device'] | None = None,
) -> 'Encoder':
    """The encoder at `path`, ready to run.

    Args:
        path: a work directory of `mim_jax.main`, a directory that `python -m mim_jax.weights
            import` made, or a weight file in mim_jax naming.
        mean, std: of the images in [0, 1], one number or one per channel; None: what the path
            states, or what is usual for the family of imported weights.
        image_size: side or (height, width) in pixels to which images are brought; None: the size
            that the encoder was made for, as far as the path tells it.
        model: fields of `mim_jax.models.ViT` that replace or complete those that the path states,
            such as {'dtype': 'bfloat16'}.
        step: which checkpoint of a work directory; None: the newest.
        average: take the average of a run's parameters (True) or the parameters (False); None: the
            average if the run keeps one.
        devices: that share the work; None: all of this process.

    Raises:
        UserError: one sentence, where there is no encoder or the path states too little.
    """
    from mim_jax import api

    return api.load(
        path,
        mean=mean,
        std=std,
        image_size=image_size,
        model=model,
        step=step,
        average=average,
        devices=devices,
    )


def __getattr__(name: str) -> Any:
    """`Encoder` and `Encoded`, which need JAX, when they are asked for."""
    if name in ('Encoded', 'Encoder'):
        from mim_jax import api

        return getattr(api, name)
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
