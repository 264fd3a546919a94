"""The mean of several layers of an average of the student, as targets."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mim_jax.errors import UserError
from mim_jax.losses import standardize_tokens
from mim_jax.ranges import Depth
from mim_jax.targets.base import Target

NORM_EPS = 1e-5  # PyTorch's default, which the released code leaves
Norm = Literal['layer', 'instance', 'none']


@dataclasses.dataclass(frozen=True)
class EMALayers(Target):
    """What the last blocks of the average of the student say of the whole image, in the mean.

    layers: so many last blocks; their outputs are taken before the encoder's final norm.
    each: how the tokens of a block are normalised before the mean is taken: 'layer' brings every
      token to mean 0 and variance 1, 'instance' every channel over the patches of an image.
    mean: how the mean is.

    Source: data2vec (Baevski et al., ICML 2022) and its released code.
    """

    layers: Depth = 6
    each: Norm = 'layer'
    mean: Norm = 'layer'

    def check(self, encoder, inputs):
        if self.layers > encoder.depth:
            raise UserError(
                f'config.objective.target.layers = {self.layers}: the encoder has only '
                f'{encoder.depth} blocks; lower it.'
            )

    @property
    def needs_ema(self) -> bool:
        return True

    def __call__(self, variables, images):
        depth = self.encoder.depth
        blocks = tuple(range(depth - self.layers + 1, depth + 1))
        params = {'params': variables['ema']['encoder']}
        encoded = self.encoder.apply(params, self.inputs.normalize(images), layers=blocks)
        total = sum(normalized(encoded.layers[block].tokens, self.each) for block in blocks)
        return jax.lax.stop_gradient(normalized(total / len(blocks), self.mean))


def normalized(tokens, norm):
    """Tokens [B,N,D] float32, normalised without parameters as `norm` says, see `EMALayers`."""
    if norm == 'none':
        return tokens.astype(jnp.float32)
    if norm == 'layer':
        return standardize_tokens(tokens, eps=NORM_EPS)
    return standardize_tokens(tokens.swapaxes(1, 2), eps=NORM_EPS).swapaxes(1, 2)
