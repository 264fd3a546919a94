"""Visual tokens: the codes that a trained VQ-KD tokenizer gives to the patches of an image."""

import dataclasses

import jax
import jax.numpy as jnp

from mim_jax import checkpoints, work_directory
from mim_jax.errors import UserError
from mim_jax.losses import unit
from mim_jax.models.heads import MLPHead
from mim_jax.models.quantizer import nearest_code
from mim_jax.models.vit import ViT
from mim_jax.ranges import AnyNumber, Count, Positive, Width
from mim_jax.targets.dalle import DalleTokenizer
from mim_jax.targets.features import network_tokens
from mim_jax.targets.frozen import FrozenNetwork
from mim_jax.weights import fitting


def code_head(model: ViT, width: int) -> MLPHead:
    """The layers between encoder and codebook, computed in float32 (as in VQ-KD)."""
    return MLPHead(model.width, width, activation='tanh', initialization=model.initialization)


@dataclasses.dataclass(frozen=True)
class Tokenizer(FrozenNetwork):
    """A frozen VQ-KD tokenizer (`objectives/vqkd.py`) with its own input.

    The target's tokens are its unit encodings [B,N,code_width], before quantisation; `codes` turns
    them, or group means of them, into numbers of codes.

    weights: work directory of a run of the objective vqkd. Its last parameters are read, not their
      average: the codes are averages of what these say.
    model: the tokenizer's encoder, as in that run.
    num_codes, code_width: of the codebook.
    """

    num_codes: Count = 8192
    code_width: Width = 32
    mean: tuple[AnyNumber, ...] = (0.5, 0.5, 0.5)
    std: tuple[Positive, ...] = (0.5, 0.5, 0.5)

    def init(self, key):
        keys = jax.random.split(key, 3)
        tokens = jnp.zeros((1, 1, self.model.width))
        return {
            'encoder': self.model.init(keys[0], self.image_struct())['params'],
            'code': code_head(self.model, self.code_width).init(keys[1], tokens)['params'],
            'codes': unit(jax.random.normal(keys[2], (self.num_codes, self.code_width))),
        }

    def load(self):
        field = 'config.objective.target.weights'
        made = 'the work directory of a run of a tokenizer, such as configs/vqkd.py makes'
        if self.weights is None:
            raise UserError(f'{field} is not set: it names {made}.')
        what = f'{field}: {self.weights}'
        try:
            model, data = (work_directory.section(self.weights, name) for name in ('model', 'data'))
            variables, _ = checkpoints.restore_variables(self.weights)
        except UserError as error:
            raise UserError(f'{field}: {error}') from error
        codebook = variables.get('state', {}).get('codebook')
        if codebook is None or 'code' not in variables['params']:
            raise UserError(f'{what} is a run of another objective; give {made}.')
        fitting.compare_models(model, self.model, what=what)
        read = {name: variables['params'][name] for name in ('encoder', 'code')}
        read = self.fitted({**read, 'codes': codebook['codes']}, what=what)
        for name in ('mean', 'std'):
            theirs, ours = tuple(data[name]), tuple(getattr(self, name))
            if theirs != ours:
                raise UserError(
                    f'config.objective.target.{name} = {ours}, but the tokenizer was trained with '
                    f'{theirs}; set it to that.'
                )
        return read

    def __call__(self, variables, images):
        params = variables['teacher']
        tokens = network_tokens(params['encoder'], self.input(images), model=self.model)
        encodings = encode(params, tokens, model=self.model)
        return jax.lax.stop_gradient(self.on_students_grid(encodings, images))

    def codes(self, encodings, *, variables):
        """Numbers int32 [...] of the codes nearest to encodings [...,code_width]."""
        return nearest_code(encodings, variables['teacher']['codes'])


# Targets that say which code a patch has: they have `num_codes` and `codes` too.
TOKENIZERS = {'vqkd': Tokenizer, 'dalle': DalleTokenizer}


def encode(params, tokens, *, model):
    """Unit encodings float32 [B,N,d] of the encoder's tokens [B,N,D], by params['code']."""
    width = params['code']['fc2']['bias'].shape[-1]
    head = code_head(model, width)
    return unit(head.apply({'params': params['code']}, tokens.astype(jnp.float32)))
