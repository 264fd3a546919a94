"""CLIP's text tower: a causal Transformer over the tokens of a sentence (Radford et al., 2021)."""

import dataclasses

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.blocks import stacked_blocks
from mim_jax.models.initializers import kernel_init, normal_token
from mim_jax.models.tokenwise import ACTIVATIONS, layer_norm
from mim_jax.ranges import Count, Depth, Number, Positive, Side, Width


@flax.struct.dataclass
class EncodedText:
    """tokens [B,T,D] after the final norm; embedding [B,P], the projected token at the end."""

    tokens: jax.Array
    embedding: jax.Array


@dataclasses.dataclass(frozen=True)
class TextTower:
    """A text tower's fields and its two pure functions.

    Parameters, float32: token_embedding [V,D], position [T,D], blocks as in `ViT`, final_norm,
    projection/kernel [D,P].
    """

    vocabulary: Count = 49408
    context: Side = 77  # longest sequence, start and end token included
    width: Width = 512
    depth: Depth = 12
    heads: Width = 8
    mlp_ratio: Positive = 4.0
    projection: Width = 512
    activation: str = 'quick_gelu'
    norm_eps: Positive = 1e-5
    end_token: Number | None = None  # None: the largest id of a sequence is its end

    def __post_init__(self):
        if self.activation not in ACTIVATIONS:
            raise ValueError(
                f'activation is {self.activation!r}, allowed: {", ".join(ACTIVATIONS)}'
            )
        if self.width % self.heads:
            raise ValueError(f'width {self.width} is not divisible by heads {self.heads}')

    def init(self, key):
        """Variables {'params': ...}, drawn at random."""
        return TextTransformer(self).init(key, jnp.zeros((1, 1), jnp.int32))

    def apply(self, variables, ids) -> EncodedText:
        """Encodes token ids [B,T] int32, T at most `context`; what follows the end has no effect.

        The end of a sequence is its first `end_token`, or the first place of its largest id: the
        rules of `transformers` for CLIP (the latter for end token 2, as in its older files).
        """
        return TextTransformer(self).apply(variables, ids)


class TextTransformer(nn.Module):
    """The Linen module of `TextTower`; see there."""

    config: TextTower

    @nn.compact
    def __call__(self, ids):
        c = self.config
        length = ids.shape[1]
        table = self.param('token_embedding', normal_token, (c.vocabulary, c.width))
        position = self.param('position', normal_token, (c.context, c.width))
        # A later token is out of reach; a bias of -inf would be a NaN in the gradient of a row.
        causal = jnp.tril(jnp.ones((length, length), bool))
        bias = jnp.where(causal, 0.0, jnp.finfo(jnp.float32).min)[None, None]
        x, _ = stacked_blocks(
            c.depth,
            heads=c.heads,
            mlp_ratio=c.mlp_ratio,
            activation=c.activation,
            norm_eps=c.norm_eps,
        )(jnp.take(table, ids, axis=0) + position[:length], bias=bias)
        x = layer_norm(c.norm_eps, 'float32', 'final_norm')(x)
        end = ids if c.end_token is None else (ids == c.end_token).astype(jnp.int32)
        last = jnp.take_along_axis(x, end.argmax(axis=1)[:, None, None], axis=1)[:, 0]
        projection = nn.Dense(
            c.projection, use_bias=False, kernel_init=kernel_init('mae'), name='projection'
        )
        return EncodedText(tokens=x, embedding=projection(last))
