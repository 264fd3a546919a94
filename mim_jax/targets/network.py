"""Features of a network as targets: a frozen teacher, or an average of the student."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.data.augment import normalize
from mim_jax.errors import UserError
from mim_jax.models.initializers import kernel_init
from mim_jax.models.patches import patch_grid
from mim_jax.models.vit import ViT
from mim_jax.morphing import merges_per_step
from mim_jax.morphing.layerwise import TokenMerging
from mim_jax.targets.base import Target
from mim_jax.weights import native
from mim_jax.weights.naming import IMAGENET


def network_tokens(params, images, *, model, layer=None, num_merged=None):
    """Patch tokens float32 [B,N,D] of `model` with `params`; deterministic, without gradient.

    images: [B,H,W,C], normalised. layer: tokens after that many blocks, before the final norm (the
    later blocks are not computed); None: after the last block, and the final norm where the model
    has one. params/projection/kernel [D,P], where present, is applied last (to [B,N,P]).
    An average of the student's parameters makes the same function an EMA teacher.
    num_merged: int32 scalar, may be traced: so many tokens are merged, spread over the blocks
    (`morphing.layerwise`); then returns (tokens, groups [B,N] int32), tokens of a group equal.
    """
    params = dict(params)
    projection = params.pop('projection', None)
    if layer is not None:
        params['blocks'] = jax.tree.map(lambda stacked: stacked[:layer], params['blocks'])
        model = dataclasses.replace(model, depth=layer, final_norm=False, drop_path=0.0)
    hook = None
    if num_merged is not None:
        num_tokens = math.prod(patch_grid(images.shape[1:3], model.patch_size))
        per_block = merges_per_step(num_merged, model.depth, num_tokens=num_tokens)
        hook = TokenMerging(per_block, model.class_token, model.num_registers)
    encoded = model.apply({'params': params}, images, hook=hook)
    tokens = encoded.tokens
    if projection is not None:
        tokens = tokens @ projection['kernel'].astype(tokens.dtype)
    tokens = jax.lax.stop_gradient(tokens.astype(jnp.float32))
    return tokens if hook is None else (tokens, hook.groups(encoded.hook_state))


def network_input(images, *, size, mean, std):
    """Images [B,H,W,C] in [0, 1] as a network sees them: resized (bicubic) to `size` (height,
    width) where that is not None, then normalised; float32.
    """
    if size is not None and tuple(size) != images.shape[1:3]:
        shape = (images.shape[0], *size, images.shape[3])
        images = jnp.clip(jax.image.resize(images, shape, 'cubic', antialias=True), 0.0, 1.0)
    return normalize(images, mean=mean, std=std)


def resample_tokens(tokens, grid_from, grid_to):
    """Tokens [B,h*w,D] of one grid (h,w) on another, bilinear (averaging where it gets coarser)."""
    if tuple(grid_from) == tuple(grid_to):
        return tokens
    batch, _, width = tokens.shape
    field = tokens.reshape(batch, *grid_from, width)
    field = jax.image.resize(field, (batch, *grid_to, width), 'linear', antialias=True)
    return field.reshape(batch, -1, width)


@dataclasses.dataclass(frozen=True)
class EMA(Target):
    """Features of the average of the student's own parameters, on the student's whole images.

    layer: tokens after that many blocks; None: the encoder's output.
    """

    layer: int | None = None

    def check(self, *, encoder, inputs):
        if self.layer is not None and not 1 <= self.layer <= encoder.depth:
            raise UserError(
                f'config.objective.target.layer = {self.layer} is not among the blocks 1 to '
                f'{encoder.depth} of the encoder.'
            )

    @property
    def needs_ema(self) -> bool:
        return True

    def __call__(self, images, *, inputs, encoder, variables):
        params = variables['ema']['encoder']
        return network_tokens(params, inputs.normalize(images), model=encoder, layer=self.layer)

    def merged(self, images, num_merged, *, inputs, encoder, variables):
        return network_tokens(
            variables['ema']['encoder'],
            inputs.normalize(images),
            model=encoder,
            layer=self.layer,
            num_merged=num_merged,
        )


@dataclasses.dataclass(frozen=True)
class Teacher(Target):
    """A frozen network with its own input: normalisation, size and layer belong to it.

    `normalization`: 'own' feeds the teacher what it was trained on, images normalised by its `mean`
    and `std`; it is the default because any other input is an error in the teacher's eyes.
    'student' feeds it the student's normalised tensor, which is what the released code of Dynamic
    Token Morphing does with CLIP.
    """

    weights: str | None = None  # a file or import folder of mim_jax.weights, or a work directory
    model: ViT = ViT()
    layer: int | None = None  # tokens after that many blocks; None: the model's output
    projection: int | None = None  # width of a linear map on the output (CLIP's image projection)
    normalization: str = 'own'
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]
    input_size: tuple[int, ...] | None = None  # (height, width); None: the student's

    def __post_init__(self):
        if self.normalization not in ('own', 'student'):
            raise ValueError(f'normalization is {self.normalization!r}, allowed: own, student')
        if self.layer is not None and not 1 <= self.layer <= self.model.depth:
            raise ValueError(f'layer {self.layer} is not among the blocks 1 to {self.model.depth}')
        if self.layer is not None and self.projection is not None:
            raise ValueError('projection applies to the last layer: leave layer unset')
        check_size(self.input_size)

    def check(self, *, encoder, inputs):
        check_channels(self, inputs)

    @property
    def width(self) -> int:
        """Width of the tokens that the teacher returns."""
        return self.model.width if self.projection is None else self.projection

    def init(self, key, inputs):
        """Parameters drawn at random, with the names and shapes of those in `weights`."""
        height, width = self.input_size or inputs.image_size
        shape = jax.ShapeDtypeStruct((1, height, width, inputs.channels), jnp.float32)
        params = dict(self.model.init(jax.random.fold_in(key, 0), shape)['params'])
        if self.projection is not None:
            size = (self.model.width, self.projection)
            kernel = kernel_init(self.model.initialization)(jax.random.fold_in(key, 1), size)
            params['projection'] = {'kernel': kernel}
        return params

    def load(self, inputs, *, where='objective.target'):
        """The parameters read from `weights`, nested dict of float32 NumPy arrays.

        Raises UserError, naming the config field `where`.weights, for weights that are unset,
        missing or do not fit.
        """
        field = f'config.{where}.weights'
        made = (
            f'a safetensors file in mim_jax naming with {self._described()}, or a work directory; '
            f'`python -m mim_jax.weights random --config=CONFIG --out=FILE` makes one with random '
            'weights'
        )
        if self.weights is None:
            raise UserError(f'{field} is not set: it names {made}')
        if not Path(self.weights).exists():
            raise UserError(f'{field}: {self.weights} does not exist; it names {made}')
        try:
            stated, params = native.load_encoder(self.weights)
            normalization = native.load_normalization(self.weights)
        except UserError as error:
            raise UserError(f'{field}: {error}') from error
        compare_models(stated, self.model, what=f'{field}: {self.weights}')
        if self.normalization == 'own':
            self._compare_normalization(normalization, where=where)
        if self.projection is None:
            params.pop('projection', None)
        return self.checked(params, inputs, what=f'{field}: {self.weights}')

    def checked(self, params, inputs, *, what):
        """The parameters without what a teacher does not need.

        Raises UserError, naming `what` they are, where they do not fit.
        """
        params = dict(params)
        if not self.model.mask_token:
            params.pop('mask_token', None)  # of a masked model's training; a teacher sees no mask
        expected = jax.eval_shape(lambda: self.init(jax.random.key(0), inputs))
        native.check_params(params, open_tables(expected, self.model), what=what)
        return params

    def __call__(self, images, *, inputs, encoder, variables):
        return self.tokens(
            variables['teacher'],
            images,
            student_normalization=(inputs.mean, inputs.std),
            student_grid=patch_grid(images.shape[1:3], encoder.patch_size),
        )

    def merged(self, images, num_merged, *, inputs, encoder, variables):
        student_grid = patch_grid(images.shape[1:3], encoder.patch_size)
        images = self._input(images, (inputs.mean, inputs.std))
        grid = patch_grid(images.shape[1:3], self.model.patch_size)
        if grid != student_grid:
            raise UserError(
                f"config.objective.morphing.grouping 'layerwise': the teacher's grid of "
                f"{grid[0]}x{grid[1]} tokens is not the student's of "
                f'{student_grid[0]}x{student_grid[1]}; set objective.target.input_size so that it '
                'is, or choose another grouping.'
            )
        return network_tokens(
            variables['teacher'],
            images,
            model=self.model,
            layer=self.layer,
            num_merged=num_merged,
        )

    def tokens(self, params, images, *, student_normalization=None, student_grid=None):
        """Target tokens float32 [B,N,width] of images [B,H,W,C] in [0,1]; no gradient.

        student_normalization: (mean, std), needed with normalization='student'. student_grid: (h,w)
        onto which tokens of another grid are resampled; None leaves them.
        """
        images = self._input(images, student_normalization)
        tokens = network_tokens(params, images, model=self.model, layer=self.layer)
        if student_grid is not None:
            grid = patch_grid(images.shape[1:3], self.model.patch_size)
            tokens = resample_tokens(tokens, grid, student_grid)
        return tokens

    def _input(self, images, student_normalization):
        mean, std = self.mean, self.std
        if self.normalization == 'student':
            if student_normalization is None:
                raise ValueError("normalization='student' needs student_normalization")
            mean, std = student_normalization
        return network_input(images, size=self.input_size, mean=mean, std=std)

    def _described(self):
        m = self.model
        head = '' if self.projection is None else f', projection {self.projection}'
        return (
            f'a ViT of width {m.width}, depth {m.depth}, {m.heads} heads, patch '
            f'{"x".join(map(str, m.patch_size))}{head}'
        )

    def _compare_normalization(self, stated, *, where):
        """Refuses a normalisation that is not the one which the weights were made for."""
        for name, values in stated.items():
            ours = getattr(self, name)
            if len(values) != len(ours) or not np.allclose(values, ours, atol=1e-3):
                raise UserError(
                    f'config.{where}.{name} = {tuple(ours)}, but {self.weights} is made for '
                    f"{tuple(values)}; set it to that, or normalization to 'student'"
                )


def compare_models(stated, model, *, what):
    """Refuses weights, called `what`, whose own model fields say another function than `model`."""
    ours = dataclasses.asdict(model)
    free = ('drop_path', 'mask_token', 'initialization', 'grid', 'scan', 'remat', 'dtype')
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


def check_size(size):
    """Raises ValueError unless `size` is None or (height, width)."""
    if size is not None and len(size) != 2:
        raise ValueError(f'input_size = {tuple(size)} must be (height, width), or None')


def check_channels(target, inputs):
    """Raises UserError unless the mean and std of `target` have one number per channel."""
    for name in ('mean', 'std'):
        values = getattr(target, name)
        if len(values) != inputs.channels:
            raise UserError(
                f'config.objective.target.{name} = {tuple(values)}: it needs one number for each '
                f'of the {inputs.channels} channels of the images.'
            )


@dataclasses.dataclass(frozen=True)
class _Shape:
    shape: tuple


def _plain(value):
    return list(value) if isinstance(value, tuple) else value
