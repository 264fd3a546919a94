"""An encoder for Python programs: from a path to features. `mim_jax.load` is the way in."""

import collections
import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from mim_jax.data import crops, resample
from mim_jax.data.augment import normalize
from mim_jax.errors import UserError
from mim_jax.models.patches import patch_grid
from mim_jax.models.vit import Encoded, ViT
from mim_jax.weights import encoders

POOLS = ('mean', 'class', 'tokens')
RESIZES = ('centre', 'whole', 'none')

Images = Any  # [B,H,W,C], NumPy's or JAX's, or an iterable of [H,W,C]
Pool = Literal['mean', 'class', 'tokens']
Resize = Literal['centre', 'whole', 'none']

# Batches handed to the devices before the first is waited for: the next one is prepared meanwhile.
IN_FLIGHT = 2


def load(
    path: str | Path,
    *,
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
    image_size: int | tuple[int, int] | None = None,
    model: Mapping[str, Any] | None = None,
    step: int | None = None,
    average: bool | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> 'Encoder':
    """See `mim_jax.load`."""
    found = encoders.complete(
        path,
        what=f'mim_jax.load({str(path)!r})',
        mean=mean,
        std=std,
        model=model,
        step=step,
        average=average,
    )
    if found.model.condition_width is not None:
        raise UserError(
            f'mim_jax.load({str(path)!r}): the blocks of this encoder follow a condition '
            f'(condition_width = {found.model.condition_width}), so it has no features of images '
            'alone'
        )
    if image_size is not None:
        image_size = (image_size,) * 2 if np.ndim(image_size) == 0 else tuple(image_size)
        if len(image_size) != 2:
            raise UserError(f'image_size={image_size} must be one number or (height, width)')
    return Encoder(
        found.model,
        found.params,
        mean=found.mean,
        std=found.std,
        image_size=image_size or found.image_size,
        projection=None if found.projection is None else found.projection['kernel'],
        devices=devices,
    )


class Encoder:
    """A Vision Transformer, its parameters on the devices, and what its images must be.

    Images are uint8 from 0 to 255 or floats from 0 to 1, channels last: an array [B,H,W,C], or any
    iterable of images [H,W,C] of any sizes, which is read a batch at a time. What is done to their
    size is said by `resize`:
      'centre': the largest centred box of the aspect ratio of `image_size`, brought to that size;
      'whole': the whole image brought to `image_size`, its aspect ratio not kept;
      'none': nothing; all images then have one size, a whole number of patches, and position
        tables are interpolated to it.
    Resizing is Pillow's antialiased bicubic. Results are NumPy arrays in float32, whatever the
    model computes in. They do not depend on the batch or the number of devices beyond rounding.

    Every kind of call is compiled once for each number of rows: a batch that is not full is padded
    to the next power of two rows per device.
    """

    def __init__(
        self,
        model: ViT,
        params: Any,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        image_size: tuple[int, int] | None = None,
        projection: np.ndarray | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Of a model and its parameters in memory; `mim_jax.load` reads them from a path."""
        if image_size is not None:
            patch_grid(image_size, model.patch_size)  # says what is wrong with it
        devices = np.asarray(jax.local_devices() if devices is None else list(devices))
        mesh = Mesh(devices, ('images',), axis_types=(AxisType.Auto,))
        self._replicated = NamedSharding(mesh, PartitionSpec())
        self._split = NamedSharding(mesh, PartitionSpec('images'))
        self._model = model
        self._params = jax.device_put(params, self._replicated)
        self._mean, self._std = tuple(map(float, mean)), tuple(map(float, std))
        self._image_size = image_size
        self._projection = projection
        # Functions compiled for this encoder, by what they return.
        self._compiled = functools.cache(self._function)

    @property
    def model(self) -> ViT:
        """The network's fields."""
        return self._model

    @property
    def params(self) -> Any:
        """The network's parameters on the devices, named as in docs/models.md."""
        return self._params

    @property
    def image_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels to which images are brought; None where nothing tells it."""
        return self._image_size

    @property
    def channels(self) -> int:
        """Of its images."""
        return len(self._mean)

    @property
    def mean(self) -> tuple[float, ...]:
        """Per channel, subtracted from images in [0, 1]."""
        return self._mean

    @property
    def std(self) -> tuple[float, ...]:
        """Per channel; images are divided by it after the mean is subtracted."""
        return self._std

    @property
    def projection(self) -> np.ndarray | None:
        """[D,P] where the weights bring a linear map of the output, as CLIP's do (`features` leaves
        it out: multiply by it), otherwise None.
        """
        return self._projection

    def __repr__(self) -> str:
        m, size = self._model, self._image_size
        patch = 'x'.join(map(str, m.patch_size))
        size = 'any size' if size is None else 'x'.join(map(str, size))
        return (
            f'<mim_jax.Encoder: ViT of width {m.width}, depth {m.depth}, {m.heads} heads, '
            f'patches of {patch}, images of {size}, {self.channels} channels>'
        )

    def features(
        self,
        images: Images,
        *,
        pool: Pool = 'mean',
        resize: Resize = 'centre',
        batch_size: int = 64,
    ) -> np.ndarray:
        """Features of images: float32 [B,D], or [B,N,D] with `pool` 'tokens'.

        Args:
            images: [B,H,W,C] or an iterable of [H,W,C], see the class.
            pool: 'mean' of the patch tokens, the 'class' token, or the patch 'tokens' themselves,
                row by row over the grid. All are the model's output, after its final norm.
            resize: 'centre', 'whole' or 'none', see the class.
            batch_size: images that are computed at once, over all devices.

        Raises:
            UserError: one sentence, where the images are none that the encoder sees.
        """
        if pool not in POOLS:
            raise UserError(f'pool={pool!r} is none of {", ".join(map(repr, POOLS))}')
        if pool == 'class' and not self._model.class_token:
            raise UserError("pool='class', but the encoder has no class token: use pool='mean'")
        return self._run(self._compiled(pool=pool), images, resize, batch_size)

    def __call__(
        self,
        images: Images,
        *,
        layers: Sequence[int] = (),
        attention: Sequence[int] = (),
        resize: Resize = 'centre',
        batch_size: int = 64,
    ) -> Encoded:
        """All that the encoder makes of images, an `Encoded` of float32 NumPy arrays: `tokens`
        [B,N,D], `class_token` [B,D] or None, `registers` [B,R,D] or None.

        Args:
            images, resize, batch_size: as in `features`.
            layers: numbers of blocks (1 to depth); `encoded.layers[block]` is an `Encoded` of the
                tokens after that block, before the final norm.
            attention: numbers of blocks; `encoded.attention[block]` [B,heads,N] are the weights
                with which the class token attends to the patches there.

        Raises:
            UserError: one sentence, as in `features`, and for blocks that there are not.
        """
        depth, asked = self._model.depth, {}
        for name, blocks in (('layers', layers), ('attention', attention)):
            blocks = (blocks,) if isinstance(blocks, int) else blocks
            asked[name] = tuple(blocks)
            if not all(1 <= block <= depth for block in asked[name]):
                raise UserError(f'{name}={asked[name]}: the encoder has the blocks 1 to {depth}')
        if attention and not self._model.class_token:
            raise UserError(
                'attention is that of the class token, and the encoder has no class token'
            )
        return self._run(self._compiled(**asked), images, resize, batch_size)

    def _function(
        self,
        pool: str | None = None,
        layers: tuple[int, ...] = (),
        attention: tuple[int, ...] = (),
    ) -> Callable[[Any, jax.Array], Any]:
        """Compiled (params, images uint8 or float [B,H,W,C]) -> features or Encoded, float32."""

        def encode(params: Any, images: jax.Array) -> Any:
            scale = 255.0 if images.dtype == jnp.uint8 else 1.0
            images = normalize(images.astype(jnp.float32) / scale, mean=self._mean, std=self._std)
            encoded = self._model.apply(
                {'params': params}, images, layers=layers, attention=attention
            )
            encoded = jax.tree.map(lambda x: x.astype(jnp.float32), encoded)
            if pool is None:
                return encoded
            if pool == 'class':
                return encoded.class_token
            return encoded.tokens.mean(axis=1) if pool == 'mean' else encoded.tokens

        return jax.jit(encode, out_shardings=self._split)

    def _run(self, function: Callable, images: Images, resize: str, batch_size: int) -> Any:
        """The function of all images: batches go to the devices, results come back as one tree."""
        if batch_size < 1:
            raise UserError(f'batch_size={batch_size} must be at least 1')
        in_flight, done = collections.deque(), []

        def fetch() -> None:
            count, result = in_flight.popleft()
            done.append(jax.tree.map(lambda x: np.asarray(x)[:count], result))

        for batch in self._batches(images, resize, batch_size):
            padding = self._rows(len(batch), batch_size) - len(batch)
            padded = np.pad(batch, [(0, padding)] + [(0, 0)] * 3)
            placed = jax.device_put(padded, self._split)
            in_flight.append((len(batch), function(self._params, placed)))
            if len(in_flight) == IN_FLIGHT:
                fetch()
        while in_flight:
            fetch()
        if not done:
            raise UserError('there are no images: give at least one')
        return jax.tree.map(lambda *parts: np.concatenate(parts), *done)

    def _rows(self, count: int, batch_size: int) -> int:
        """Rows of the batch in which `count` images are computed: as many on every device."""
        devices = self._split.mesh.size
        full, needed = -(-batch_size // devices), -(-count // devices)
        return devices * min(full, 2 ** (needed - 1).bit_length())

    def _batches(self, images: Images, resize: str, batch_size: int) -> Iterator[np.ndarray]:
        """Up to `batch_size` images at a time as the network's input, uint8 or float32."""
        if resize not in RESIZES:
            raise UserError(f'resize={resize!r} is none of {", ".join(map(repr, RESIZES))}')
        if resize != 'none' and self._image_size is None:
            raise UserError(
                'nothing tells the image size that this encoder was made for: give image_size to '
                "mim_jax.load, or resize='none' for images at their own size"
            )
        size = None
        for batch in _batched(_each(images), batch_size):
            seen = [self._sized(image, resize) for image in batch]
            for image in seen:
                size = size or image.shape[:2]
                if image.shape[:2] != size:
                    raise UserError(
                        f"resize='none': one image has {size[0]}x{size[1]} pixels, another "
                        f'{image.shape[0]}x{image.shape[1]}; give images of one size at a time'
                    )
            if len({image.dtype for image in seen}) > 1:
                seen = [_as_float(image) for image in seen]
            yield np.stack(seen)

    def _sized(self, image: np.ndarray, resize: str) -> np.ndarray:
        """An image [H,W,C] at the size at which the network sees it."""
        height, width, channels = image.shape
        if channels != self.channels:
            raise UserError(
                f'an image of the shape {image.shape} has {channels} channels (they come last), '
                f'but the encoder sees {self.channels}'
            )
        if resize == 'none':
            patch_grid((height, width), self._model.patch_size)  # says if it is not whole patches
            return image
        size, box = self._image_size, None
        if resize == 'centre':
            box = crops.centre_box(height=height, width=width, size=size, share=1.0)
        return resample.resize(image, size, box=box)


def _each(images: Images) -> Iterator[np.ndarray]:
    """The images one by one, uint8 or float32 [H,W,C].

    Raises UserError for what is no image.
    """
    if hasattr(images, 'ndim') and images.ndim != 4:
        raise UserError(
            f'an array of images is [B,H,W,C], got the shape {tuple(images.shape)}; one image is '
            'a batch of one, image[None]'
        )
    if isinstance(images, (str, bytes, Mapping)) or not isinstance(images, Iterable):
        raise UserError(
            'images are an array [B,H,W,C] or an iterable of arrays [H,W,C], not '
            f'{type(images).__name__}'
        )
    if hasattr(images, 'ndim'):
        images = np.asarray(images)  # once, where it lies on a device
    for image in images:
        image = np.asarray(image)
        if image.ndim != 3 or not image.size:
            raise UserError(
                f'an image is an array [H,W,C], got {image.dtype} of the shape {image.shape}'
            )
        if image.dtype != np.uint8:
            if not jnp.issubdtype(image.dtype, jnp.floating):
                raise UserError(
                    f'images are uint8 from 0 to 255 or floats from 0 to 1, not {image.dtype}'
                )
            image = image.astype(np.float32)
            low, high = image.min(), image.max()
            if not (low >= 0 and high <= 1):  # NaN too
                raise UserError(
                    f'float images lie in [0, 1], but one goes from {low:g} to {high:g}: divide '
                    'by 255, or undo a normalisation, which the encoder does itself'
                )
        yield image


def _batched(items: Iterator, size: int) -> Iterator[tuple]:
    """itertools.batched, which Python 3.11 lacks."""
    while batch := tuple(itertools.islice(items, size)):
        yield batch


def _as_float(image: np.ndarray) -> np.ndarray:
    return image.astype(np.float32) / 255 if image.dtype == np.uint8 else image
