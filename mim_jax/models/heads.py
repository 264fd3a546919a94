"""Heads on an encoder's output."""

import flax.linen as nn
import jax.numpy as jnp

from mim_jax.models.blocks import Linear, layer_norm
from mim_jax.models.initializers import kernel_init

POOLINGS = ('mean', 'class_token')


class TokenHead(nn.Module):
    """One linear layer on every token: [B,N,D] to float32 [B,N,features].

    With patches as targets this is SimMIM's 1x1 convolution and pixel shuffle. Parameters: linear.
    """

    features: int
    initialization: str = 'mae'
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, tokens):
        head = Linear(
            (self.features,), initialization=self.initialization, dtype=self.dtype, name='linear'
        )
        return head(tokens).astype(jnp.float32)


class PooledClassifier(nn.Module):
    """Logits float32 [B,classes] from an `Encoded`: of the mean patch token or the class token.

    With `norm` a LayerNorm follows the pooling (then the encoder needs no final norm: the form of
    BEiT's and MAE's fine-tuning). The kernel starts as a normal of deviation 0.02 cut at one
    deviation, times `init_scale`; 0.001 in those recipes, so that logits start nearly equal.
    Parameters: norm, linear.
    """

    classes: int
    pooling: str = 'mean'
    norm: bool = True
    norm_eps: float = 1e-6
    init_scale: float = 0.001
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, encoded):
        if self.pooling not in POOLINGS:
            raise ValueError(f'pooling is {self.pooling!r}, allowed: {", ".join(POOLINGS)}')
        if self.pooling == 'mean':
            x = encoded.tokens.mean(axis=1, dtype=jnp.float32)
        else:
            x = encoded.class_token
        if self.norm:
            x = layer_norm(self.norm_eps, self.dtype, 'norm')(x)
        init = kernel_init('beit', scale=self.init_scale)
        logits = nn.Dense(self.classes, dtype=self.dtype, kernel_init=init, name='linear')(x)
        return logits.astype(jnp.float32)
