"""Heads on an encoder's output."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import UserError
from mim_jax.losses import unit
from mim_jax.models.batch_norm import BatchNorm
from mim_jax.models.initializers import kernel_init
from mim_jax.models.pooling import AttentivePool
from mim_jax.models.tokenwise import ACTIVATIONS, Linear, layer_norm

POOLINGS = ('mean', 'class_token', 'attentive')
HIDDEN_ACTIVATIONS = {'relu': jax.nn.relu, 'tanh': jnp.tanh, 'gelu': ACTIVATIONS['gelu']}


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


class LevelHeads(nn.Module):
    """A teacher's levels predicted from all of a student's: tokens after its S blocks, [...,S,D],
    to float32 [...,T,features].

    Level t is head_t(sum over s of W[t, s] tokens[..., s]): a learned mixture of the student's
    blocks, and a linear layer of the level's own.

    levels: numbers (from 1) of the teacher's blocks that are predicted; there are T.
    fusion: 'linear' starts W at the identity plus 0.01, so that a student must have as many blocks
      as its teacher; 'sum' starts it at 1/S; 'none' has no W: level t is read from block t.

    Parameters: fusion [T,S], heads/linear/{kernel [T,D,features], bias [T,features]}.

    Source: the Dynamic Alignment of MaskAlign (Xue et al., CVPR 2023).
    """

    levels: tuple[int, ...]
    features: int
    fusion: str = 'linear'
    initialization: str = 'mae'
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, tokens):
        chosen = np.array(self.levels) - 1
        if self.fusion == 'none':
            fused = tokens[..., chosen, :]
        else:
            depth = tokens.shape[-2]
            if self.fusion == 'linear':
                start = np.eye(depth)[chosen] + 0.01
            else:
                start = np.full((len(chosen), depth), 1 / depth)
            weights = self.param('fusion', lambda key: jnp.asarray(start, jnp.float32))
            weights, tokens = weights.astype(self.dtype), tokens.astype(self.dtype)
            fused = jnp.einsum('ts,...sd->...td', weights, tokens)
        heads = nn.vmap(
            TokenHead,
            in_axes=-2,
            out_axes=-2,
            variable_axes={'params': 0},
            split_rngs={'params': True},
        )
        return heads(self.features, self.initialization, self.dtype, name='heads')(fused)


def check_levels(levels, fusion, *, student, teacher):
    """Raises UserError where `LevelHeads` cannot predict the `levels` last blocks of a teacher from
    a student; both are given by their numbers of blocks.
    """
    if not 1 <= levels <= teacher:
        raise UserError(f'config.objective.levels = {levels}: the teacher has {teacher} blocks.')
    if fusion != 'sum' and student != teacher:
        raise UserError(
            f'config.objective.fusion = {fusion!r} needs as many blocks in the student ({student}) '
            f"as in the teacher ({teacher}); change config.model.depth, or set fusion to 'sum'."
        )


def side_by_side(levels):
    """[B,1+N,L,D], as `Encoded.stacked` gives it, without the class token and the levels side by
    side: [B,N,L*D].
    """
    return levels[:, 1:].reshape(levels.shape[0], levels.shape[1] - 1, -1)


class MLPHead(nn.Module):
    """Two linear layers with an activation between them: [...,D] to float32 [...,features].

    batch_norm: normalises the hidden layer by the statistics of the batch in hand, over all axes
    but the last, in training and whenever else it is called (no running average is kept: the heads
    that use it are left behind after pre-training). bias: of both linear layers. Parameters: fc1,
    norm, fc2.
    """

    hidden: int
    features: int
    activation: str = 'relu'
    batch_norm: bool = False
    bias: bool = True
    initialization: str = 'mae'
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x):
        common = {
            'bias': self.bias,
            'initialization': self.initialization,
            'dtype': self.dtype,
        }
        x = Linear((self.hidden,), name='fc1', **common)(x)
        if self.batch_norm:
            x = BatchNorm(name='norm')(x).astype(x.dtype)
        x = HIDDEN_ACTIVATIONS[self.activation](x)
        return Linear((self.features,), name='fc2', **common)(x).astype(jnp.float32)


class Projector(nn.Module):
    """Linear layers, a norm behind each and an activation between them: [...,D] to float32
    [...,widths[-1]]. The last norm has no scale and no bias.

    norm: 'layer' (eps 1e-6), or 'batch' as in `MLPHead`. bias: of the linear layers. Parameters:
    fc1, norm1, fc2, norm2, …

    affine: the last norm has scale and bias all the same (Latent MIM).

    Source: SimCLR's projector, as ConMIM (Yi et al., ICLR 2023) has it, and with layer norms the
    visible branch of DMJD (Ma et al., arXiv 2301.00230), each in its released code.
    """

    widths: tuple[int, ...]
    norm: str = 'batch'
    activation: str = 'relu'
    bias: bool = False
    initialization: str = 'mae'
    dtype: str = 'float32'
    affine: bool = False

    @nn.compact
    def __call__(self, x):
        for i, width in enumerate(self.widths, start=1):
            options = {'bias': self.bias, 'initialization': self.initialization}
            x = Linear((width,), dtype=self.dtype, name=f'fc{i}', **options)(x)
            last, name = i == len(self.widths), f'norm{i}'
            affine = self.affine or not last
            if self.norm == 'batch':
                x = BatchNorm(affine=affine, name=name)(x)
            else:
                x = layer_norm(1e-6, self.dtype, name, affine=affine)(x)
            if not last:
                x = HIDDEN_ACTIVATIONS[self.activation](x.astype(self.dtype))
        return x.astype(jnp.float32)


class WeightGenerator(nn.Module):
    """A classifier's weights, made from what its classes look like: words [K,D] to unit vectors
    float32 [K,features].

    The words through linear (no bias), batch norm over the words, ReLU and linear, plus the words
    themselves (through a linear layer where the widths differ). Parameters: fc1, norm, fc2, skip.

    Source: MOCA (Gidaris et al., TMLR 2024), the released code.
    """

    hidden: int
    features: int
    initialization: str = 'mae'
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, words):
        common = {'initialization': self.initialization, 'dtype': self.dtype}
        x = Linear((self.hidden,), bias=False, name='fc1', **common)(words)
        x = jax.nn.relu(BatchNorm(name='norm')(x)).astype(self.dtype)
        x = Linear((self.features,), name='fc2', **common)(x)
        if words.shape[-1] != self.features:
            words = Linear((self.features,), name='skip', **common)(words)
        return unit(x.astype(jnp.float32) + words.astype(jnp.float32))


class PooledClassifier(nn.Module):
    """Logits float32 [B,classes] from an `Encoded`: of the mean patch token, the class token, or
    all of them by `AttentivePool` with `heads`.

    With `norm` a LayerNorm follows the pooling (then the encoder needs no final norm: the form of
    BEiT's and MAE's fine-tuning). The kernel starts as a normal of deviation 0.02 cut at one
    deviation, times `init_scale`; 0.001 in those recipes, so that logits start nearly equal.
    Parameters: pool, norm, linear.

    With `batch_norm` a `BatchNorm` of running averages, without parameters and with eps 1e-6, feeds
    the linear layer (the form of MAE's linear probe).
    """

    classes: int
    pooling: str = 'mean'
    norm: bool = True
    norm_eps: float = 1e-6
    init_scale: float = 0.001
    batch_norm: bool = False
    heads: int = 1
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, encoded, train=False):
        if self.pooling not in POOLINGS:
            raise ValueError(f'pooling is {self.pooling!r}, allowed: {", ".join(POOLINGS)}')
        if self.pooling == 'mean':
            x = encoded.tokens.mean(axis=1, dtype=jnp.float32)
        elif self.pooling == 'class_token':
            x = encoded.class_token
        else:
            pool = AttentivePool(self.heads, self.norm_eps, self.dtype, name='pool')
            x = pool(encoded.class_and_patches)
        if self.norm:
            x = layer_norm(self.norm_eps, self.dtype, 'norm')(x)
        if self.batch_norm:
            norm = BatchNorm(affine=False, running=True, eps=1e-6, name='batch_norm')
            x = norm(x, train=train)
        init = kernel_init('beit', scale=self.init_scale)
        logits = nn.Dense(self.classes, dtype=self.dtype, kernel_init=init, name='linear')(x)
        return logits.astype(jnp.float32)
