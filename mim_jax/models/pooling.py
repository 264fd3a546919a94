"""Attentive pooling: one vector of many tokens by a query that is learned."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax.models.tokenwise import layer_norm

STD = 0.02


class AttentivePool(nn.Module):
    """Multi-head cross-attention of one learned query to tokens [B,N,D]: float32 [B,D].

    Of every token a LayerNorm, with scale and bias of its own for the query, the keys and the
    values; query and value projections with bias, keys without; an output projection. No residual
    and no MLP. The query starts at zero, so that attention starts uniform.

    `heads` must divide D. Parameters: query [D], norm_query {scale, bias}, norm_key {scale},
    norm_value {scale, bias}, attention/{query, key, value, out}.

    With one query per image nothing is projected token by token: the query is brought to the space
    of the tokens, and the values are projected after they are averaged. That is the same function
    at 2 heads multiplications per entry of a token instead of 2 D. The bias of the keys' norm adds
    the same to all logits of a head and is left out.

    Source: the attentive probing of CAE (Chen et al., "Context Autoencoder for Self-Supervised
    Representation Learning", IJCV 2023, arXiv 2202.03026; AttentiveBlock of its released code).
    """

    heads: int
    norm_eps: float = 1e-6
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, tokens):
        width = tokens.shape[-1]
        if width % self.heads:
            raise ValueError(f'{self.heads} heads do not divide tokens of width {width}')
        query = self.param('query', nn.initializers.zeros, (width,))
        query = layer_norm(self.norm_eps, 'float32', 'norm_query')(query)
        key_scale = Scale(width, bias=False, name='norm_key')()[0]
        value_scale, value_bias = Scale(width, name='norm_value')()
        projections = SingleQuery(width, self.heads, name='attention')()

        kernel, bias = projections['query']
        query = jnp.einsum('d,dhk->hk', query, kernel) + bias
        query = jnp.einsum('hk,dhk->hd', query, projections['key'][0]) * key_scale
        x = layer_norm(self.norm_eps, self.dtype, 'plain_norm', affine=False)(tokens)
        logits = jnp.einsum(
            'bnd,hd->bhn', x, query.astype(x.dtype), preferred_element_type=jnp.float32
        )
        weights = jax.nn.softmax(logits * (width // self.heads) ** -0.5, axis=-1)
        pooled = jnp.einsum(
            'bhn,bnd->bhd', weights.astype(x.dtype), x, preferred_element_type=jnp.float32
        )
        kernel, bias = projections['value']
        values = jnp.einsum('bhd,dhk->bhk', pooled * value_scale + value_bias, kernel) + bias
        kernel, bias = projections['out']
        return jnp.einsum('bhk,hkd->bd', values, kernel) + bias


class Scale(nn.Module):
    """The scale [D] and (or None) the bias [D] of a LayerNorm."""

    width: int
    bias: bool = True

    @nn.compact
    def __call__(self):
        scale = self.param('scale', nn.initializers.ones, (self.width,))
        if not self.bias:
            return scale, None
        return scale, self.param('bias', nn.initializers.zeros, (self.width,))


class SingleQuery(nn.Module):
    """Kernels and biases of multi-head attention by name: query, key and value [D,heads,K], out
    [heads,K,D] with K = D / heads; the key has no bias.
    """

    width: int
    heads: int

    @nn.compact
    def __call__(self):
        inner = (self.heads, self.width // self.heads)
        shapes = {name: ((self.width, *inner), inner) for name in ('query', 'key', 'value')}
        shapes['out'] = ((*inner, self.width), (self.width,))
        return {
            name: Projection(*shape, bias=name != 'key', name=name)()
            for name, shape in shapes.items()
        }


class Projection(nn.Module):
    """A kernel drawn with deviation STD, and (or None) a bias that starts at zero."""

    shape: tuple[int, ...]
    bias_shape: tuple[int, ...]
    bias: bool = True

    @nn.compact
    def __call__(self):
        kernel = self.param('kernel', nn.initializers.normal(STD), self.shape)
        if not self.bias:
            return kernel, None
        return kernel, self.param('bias', nn.initializers.zeros, self.bias_shape)
