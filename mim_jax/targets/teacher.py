"""Features of a frozen network as targets."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax import storage
from mim_jax.errors import UserError
from mim_jax.models.initializers import kernel_init
from mim_jax.models.patches import patch_grid
from mim_jax.models.vit import Encoded
from mim_jax.ranges import Depth, Width
from mim_jax.targets.features import network_input, network_tokens
from mim_jax.targets.frozen import FrozenNetwork
from mim_jax.weights import encoders, fitting

FIELD = 'config.objective.target'


@dataclasses.dataclass(frozen=True)
class Teacher(FrozenNetwork):
    """A frozen network with its own input: normalisation, size and layer belong to it.

    weights: a file or import folder of mim_jax.weights, or a work directory.
    layer: tokens after that many blocks; None: the model's output.
    projection: width of a linear map on the output (CLIP's image projection).
    normalization: 'own' feeds the teacher what it was trained on, images normalised by its `mean`
      and `std`; it is the default because any other input is an error in the teacher's eyes.
      'student' feeds it the student's normalised tensor, which is what the released code of Dynamic
      Token Morphing does with CLIP.
    """

    layer: Depth | None = None
    projection: Width | None = None
    normalization: str = 'own'

    def __post_init__(self):
        super().__post_init__()
        if self.normalization not in ('own', 'student'):
            raise ValueError(f'normalization is {self.normalization!r}, allowed: own, student')
        if self.layer is not None and not 1 <= self.layer <= self.model.depth:
            raise ValueError(f'layer {self.layer} is not among the blocks 1 to {self.model.depth}')
        if self.layer is not None and self.projection is not None:
            raise ValueError('projection applies to the last layer: leave layer unset')

    @property
    def width(self) -> int:
        """Width of the tokens that the teacher returns."""
        return self.model.width if self.projection is None else self.projection

    def init(self, key):
        """Parameters drawn at random, with the names and shapes of those in `weights`."""
        params = dict(self.model.init(jax.random.fold_in(key, 0), self.image_struct())['params'])
        if self.projection is not None:
            size = (self.model.width, self.projection)
            kernel = kernel_init(self.model.initialization)(jax.random.fold_in(key, 1), size)
            params['projection'] = {'kernel': kernel}
        return params

    def load(self):
        """The parameters read from `weights`, nested dict of float32 NumPy arrays.

        Raises UserError, naming the config field, for weights that are unset, missing or do not
        fit.
        """
        field = f'{FIELD}.weights'
        made = (
            f'`python -m mim_jax.weights import FILE_OR_DIR --out={self.weights or "DIR"}` makes '
            f"one of another project's weights; it names {self._described()}: an import's folder, "
            'a weight file in mim_jax naming, or a work directory (for a trial, `… random '
            '--config=CONFIG --out=FILE` makes random weights)'
        )
        if self.weights is None:
            raise UserError(f'{field} is not set: {made}')
        if not storage.path(self.weights).exists():
            raise UserError(f'{field}: {self.weights} does not exist: {made}')
        try:
            stated, params = encoders.load_encoder(self.weights)
            normalization = encoders.load_normalization(self.weights)
        except UserError as error:
            raise UserError(f'{field}: {error}') from error
        fitting.compare_models(stated, self.model, what=f'{field}: {self.weights}')
        if self.normalization == 'own':
            self._compare_normalization(normalization)
        if self.projection is None:
            params.pop('projection', None)
        return self.fitted(params, what=f'{field}: {self.weights}')

    def fitted(self, params, *, what):
        params = dict(params)
        if not self.model.mask_token:
            params.pop('mask_token', None)  # of a masked model's training; a teacher sees no mask
        return super().fitted(params, what=what)

    def __call__(self, variables, images):
        return self.tokens(variables['teacher'], images)

    def tokens(self, params: dict[str, Any], images: jax.Array) -> jax.Array:
        """Target tokens float32 [B,N,width] of images [B,H,W,C] in [0,1] at the student's patches;
        no gradient. params: the teacher's.
        """
        tokens = network_tokens(params, self.input(images), model=self.model, layer=self.layer)
        return self.on_students_grid(tokens, images)

    def merged(self, variables, images, num_merged):
        student_grid = patch_grid(images.shape[1:3], self.encoder.patch_size)
        seen = self.input(images)
        grid = patch_grid(seen.shape[1:3], self.model.patch_size)
        if grid != student_grid:
            raise UserError(
                f"config.objective.morphing.grouping 'layerwise': the teacher's grid of "
                f"{grid[0]}x{grid[1]} tokens is not the student's of "
                f'{student_grid[0]}x{student_grid[1]}; set objective.target.input_size so that it '
                'is, or choose another grouping.'
            )
        return network_tokens(
            variables['teacher'], seen, model=self.model, layer=self.layer, num_merged=num_merged
        )

    def encode(
        self,
        params: dict[str, Any],
        images: jax.Array,
        *,
        layers: tuple[int, ...] = (),
        attention: tuple[int, ...] = (),
        queries_keys: tuple[int, ...] = (),
    ) -> Encoded:
        """Output and taps of the teacher for images [B,H,W,C] in [0, 1], float32, no gradient.

        layers, attention, queries_keys: numbers of blocks (1 to depth), see `ViT.apply`. Patch
        tokens and attention to patches are at the student's patches, resampled where the teacher's
        grid is another (queries and keys stay on its own); the output (tokens and class token) is
        projected where the teacher projects.
        """
        params = dict(params)
        projection = params.pop('projection', None)
        encoded = self.model.apply(
            {'params': params},
            self.input(images),
            layers=layers,
            attention=attention,
            queries_keys=queries_keys,
        )
        encoded = jax.tree.map(lambda x: jax.lax.stop_gradient(x.astype(jnp.float32)), encoded)
        if projection is not None:
            kernel = projection['kernel']
            encoded = encoded.replace(
                tokens=encoded.tokens @ kernel,
                class_token=None if encoded.class_token is None else encoded.class_token @ kernel,
            )

        def moved(one: Encoded) -> Encoded:
            return one.replace(tokens=self.on_students_grid(one.tokens, images))

        def attended(weights: jax.Array) -> jax.Array:
            return self.on_students_grid(weights.swapaxes(1, 2), images).swapaxes(1, 2)

        return moved(encoded).replace(
            layers={k: moved(v) for k, v in encoded.layers.items()},
            attention={k: attended(v) for k, v in encoded.attention.items()},
        )

    def input(self, images):
        if self.normalization == 'own':
            return super().input(images)
        mean, std = self.inputs.mean, self.inputs.std
        return network_input(images, size=self.input_size, mean=mean, std=std)

    def _described(self):
        m = self.model
        head = '' if self.projection is None else f', projection {self.projection}'
        return (
            f'a ViT of width {m.width}, depth {m.depth}, {m.heads} heads, patch '
            f'{"x".join(map(str, m.patch_size))}{head}'
        )

    def _compare_normalization(self, stated):
        """Refuses a normalisation that is not the one which the weights were made for."""
        for name, values in stated.items():
            ours = getattr(self, name)
            if len(values) != len(ours) or not np.allclose(values, ours, atol=1e-3):
                raise UserError(
                    f'{FIELD}.{name} = {tuple(ours)}, but {self.weights} is made for '
                    f"{tuple(values)}; set it to that, or normalization to 'student'"
                )
