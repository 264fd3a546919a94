"""Visual tokens: the codes that a trained VQ-KD tokenizer gives to the patches of an image."""

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.losses import unit
from mim_jax.models.heads import MLPHead
from mim_jax.models.patches import patch_grid
from mim_jax.models.quantizer import nearest_code
from mim_jax.models.vit import ViT
from mim_jax.targets.base import Target
from mim_jax.targets.network import (
    check_channels,
    check_size,
    compare_models,
    network_input,
    network_tokens,
    open_tables,
    resample_tokens,
)
from mim_jax.weights import native


def code_head(model: ViT, width: int) -> MLPHead:
    """The layers between encoder and codebook, computed in float32 (as in VQ-KD)."""
    return MLPHead(model.width, width, activation='tanh', initialization=model.initialization)


@dataclasses.dataclass(frozen=True)
class Tokenizer(Target):
    """A frozen VQ-KD tokenizer (`objectives/vqkd.py`) with its own input.

    The target's tokens are its unit encodings [B,N,code_width], before quantisation; `codes` turns
    them, or group means of them, into numbers of codes.

    weights: work directory of a run of the objective vqkd. Its last parameters are read, not their
      average: the codes are averages of what these say.
    model: the tokenizer's encoder, as in that run.
    num_codes, code_width: of the codebook.
    mean, std: the tokenizer's normalisation.
    input_size: (height, width) that it sees; None: the student's.
    """

    weights: str | None = None
    model: ViT = ViT()
    num_codes: int = 8192
    code_width: int = 32
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    input_size: tuple[int, ...] | None = None

    def __post_init__(self):
        check_size(self.input_size)

    def check(self, *, encoder, inputs):
        check_channels(self, inputs)

    def init(self, key, inputs):
        height, width = self.input_size or inputs.image_size
        shape = jax.ShapeDtypeStruct((1, height, width, inputs.channels), jnp.float32)
        keys = jax.random.split(key, 3)
        tokens = jnp.zeros((1, 1, self.model.width))
        return {
            'encoder': self.model.init(keys[0], shape)['params'],
            'code': code_head(self.model, self.code_width).init(keys[1], tokens)['params'],
            'codes': unit(jax.random.normal(keys[2], (self.num_codes, self.code_width))),
        }

    def load(self, inputs):
        field = 'config.objective.target.weights'
        made = 'the work directory of a run of a tokenizer, such as configs/vqkd.py makes'
        if self.weights is None:
            raise UserError(f'{field} is not set: it names {made}.')
        from mim_jax import checkpoints, work_directory  # heavy: the whole program
        from mim_jax.objectives.vqkd import VQKD

        try:
            run = work_directory.read_config(self.weights)
            variables, _ = checkpoints.restore_variables(self.weights)
        except UserError as error:
            raise UserError(f'{field}: {error}') from error
        if not isinstance(run.objective, VQKD):
            raise UserError(f'{field}: {self.weights} is a run of another objective; give {made}.')
        read = {
            'encoder': variables['params']['encoder'],
            'code': variables['params']['code'],
            'codes': variables['state']['codebook']['codes'],
        }
        what = f'{field}: {self.weights}'
        compare_models(dataclasses.asdict(run.model), self.model, what=what)
        expected = jax.eval_shape(lambda: self.init(jax.random.key(0), inputs))
        native.check_params(read, open_tables(expected, self.model), what=what)
        for name in ('mean', 'std'):
            theirs, ours = tuple(getattr(run.data, name)), tuple(getattr(self, name))
            if theirs != ours:
                raise UserError(
                    f'config.objective.target.{name} = {ours}, but the tokenizer was trained with '
                    f'{theirs}; set it to that.'
                )
        return read

    def __call__(self, images, *, inputs, encoder, variables):
        params = variables['teacher']
        images = network_input(images, size=self.input_size, mean=self.mean, std=self.std)
        tokens = network_tokens(params['encoder'], images, model=self.model)
        encodings = encode(params, tokens, model=self.model)
        grid = patch_grid(images.shape[1:3], self.model.patch_size)
        student_grid = patch_grid(inputs.image_size, encoder.patch_size)
        return jax.lax.stop_gradient(resample_tokens(encodings, grid, student_grid))

    def codes(self, encodings, *, variables):
        """Numbers int32 [...] of the codes nearest to encodings [...,code_width]."""
        return nearest_code(encodings, variables['teacher']['codes'])


def encode(params, tokens, *, model):
    """Unit encodings float32 [B,N,d] of the encoder's tokens [B,N,D], by params['code']."""
    width = params['code']['fc2']['bias'].shape[-1]
    head = code_head(model, width)
    return unit(head.apply({'params': params['code']}, tokens.astype(jnp.float32)))
