"""Heads that give every pixel its class: from the tokens of an encoder to logits on a map."""

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax import keys as named_keys
from mim_jax.models.batch_norm import BatchNorm
from mim_jax.models.convolutions import ConvUnit, Doubled
from mim_jax.models.resizing import adaptive_average, bilinear, halved_by_maximum
from mim_jax.ranges import Depth, Fraction, NotNegative, Side, Width

# BEiT's four blocks, as shares of the depth: 4, 6, 8, 12 of 12, and 8, 12, 16, 24 of 24.
SHARES = (1 / 3, 1 / 2, 2 / 3, 1.0)


class Segmenter:
    """What heads have in common. A choice of a config; `module` is the Linen module."""

    has_state = False  # whether it has a collection `state`, so that its loss needs a whole batch

    def init(self, key, *, width, depth, grid, classes, dtype):
        """Variables {'params': …} and, where it has one, 'state', for an encoder's tokens."""
        module = self.module(classes, dtype)
        return _init(module, key, len(self.taps(depth)) or 1, width, tuple(grid))

    def apply(self, variables, maps, *, classes, dtype, keys=None):
        """Logits of the maps [B,h,w,D] after the blocks `taps` (or of the last layer's).

        keys: typed keys [B] of a training step; None: evaluation, by running averages.

        Returns:
          a list of (weight in the loss, logits float32 [B,h',w',classes]), the head's own first;
          and the new collection `state`, {} where there is none.
        """
        module = self.module(classes, dtype)
        if keys is None:
            return module.apply(variables, maps), variables.get('state', {})
        logits, changed = module.apply(variables, maps, keys=keys, mutable=['state'])
        return logits, changed.get('state', {})


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _init(module, key, count, width, grid):
    return module.init(key, [jnp.zeros((1, *grid, width))] * count)


@dataclasses.dataclass(frozen=True)
class UPerNet(Segmenter):
    """BEiT's: a pyramid of four blocks, UPerNet (Xiao et al., ECCV 2018), an auxiliary FCN.

    blocks: the four, counted from 1; (): a third, a half, two thirds and all of the depth.
    channels: of UPerNet (mmseg: 512; BEiT: the encoder's width).
    pool_scales: bins a side of the pyramid pooling.
    dropout: share of the channels dropped before the last layers.
    auxiliary_channels, auxiliary_weight: of the FCN head on the third level; weight 0: none.
    """

    blocks: tuple[Depth, ...] = ()
    channels: Width = 512
    pool_scales: tuple[Side, ...] = (1, 2, 3, 6)
    dropout: Fraction = 0.1
    auxiliary_channels: Width = 256
    auxiliary_weight: NotNegative = 0.4

    has_state = True

    def __post_init__(self):
        if self.blocks and len(self.blocks) != 4:
            raise ValueError(f'blocks = {self.blocks} must be four, counted from 1, or ().')

    def taps(self, depth):
        """Numbers of the blocks, from 1, whose tokens the head takes."""
        return self.blocks or tuple(max(1, round(share * depth)) for share in SHARES)

    def module(self, classes, dtype):
        return _UPerNet(self, classes, dtype)


@dataclasses.dataclass(frozen=True)
class LinearSegmenter(Segmenter):
    """One linear layer on every patch token of the last layer (behind the encoder's final norm).

    dropout: share of the channels dropped before it.
    """

    dropout: Fraction = 0.0

    def taps(self, depth):
        """None: the encoder's output."""
        return ()

    def module(self, classes, dtype):
        return _Linear(self, classes, dtype)


SEGMENTERS = {'upernet': UPerNet, 'linear': LinearSegmenter}


class _Linear(nn.Module):
    config: LinearSegmenter
    classes: int
    dtype: str

    @nn.compact
    def __call__(self, maps, *, keys=None):
        (x,) = maps
        x = _dropped(x, self.config.dropout, keys, 'head')
        return [(1.0, _classifier(self.classes, self.dtype, 'classify')(x).astype(jnp.float32))]


class _UPerNet(nn.Module):
    """Parameters: pyramid, decoder, auxiliary."""

    config: UPerNet
    classes: int
    dtype: str

    @nn.compact
    def __call__(self, maps, *, keys=None):
        c, train = self.config, keys is not None
        levels = Pyramid(self.dtype, name='pyramid')(maps, train=train)
        decoder = UPerNetDecoder(
            self.classes, c.channels, c.pool_scales, c.dropout, self.dtype, name='decoder'
        )
        logits = [(1.0, decoder(levels, keys=keys))]
        if c.auxiliary_weight:
            head = FCNHead(
                self.classes, c.auxiliary_channels, c.dropout, self.dtype, name='auxiliary'
            )
            logits.append((c.auxiliary_weight, head(levels[2], keys=keys)))
        return logits


class Pyramid(nn.Module):
    """BEiT's pyramid from four maps [B,h,w,D] of one size: four times and twice the size by
    transposed convolutions, the size, half of it by maxima. Parameters: double1, norm, double2 (of
    the first), double (of the second).
    """

    dtype: str = 'float32'

    @nn.compact
    def __call__(self, maps, *, train):
        first, second, third, fourth = maps
        double = functools.partial(Doubled, first.shape[-1], self.dtype)
        x = BatchNorm(running=True, name='norm')(double(name='double1')(first), train=train)
        x = double(name='double2')(jax.nn.gelu(x, approximate=False).astype(self.dtype))
        return x, double(name='double')(second), third, halved_by_maximum(fourth)


class UPerNetDecoder(nn.Module):
    """UPerNet's decoder: logits float32 [B,h,w,classes] at the size of the first (largest) level.

    The smallest level is pooled over 1, 4, 9, … bins, each projected and resized, and all
    concatenated; it then goes down the pyramid by sums, every level is smoothed, and all are
    concatenated at the largest size. Parameters: pools_I, bottleneck, laterals_I, smooth_I, fuse,
    classify.
    """

    classes: int
    channels: int
    pool_scales: tuple[int, ...]
    dropout: float
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, levels, *, keys=None):
        train = keys is not None

        def unit(x, name, side=1):
            return ConvUnit(self.channels, side, self.dtype, name=name)(x, train=train)

        *lower, top = levels
        size = top.shape[1:3]
        pooled = [top.astype(self.dtype)]
        for i, scale in enumerate(self.pool_scales):
            x = unit(adaptive_average(top, (scale, scale)).astype(self.dtype), f'pools_{i}')
            pooled.append(bilinear(x, size))
        top = unit(jnp.concatenate(pooled, axis=-1), 'bottleneck', 3)
        laterals = [unit(x, f'laterals_{i}') for i, x in enumerate(lower)] + [top]
        for i in reversed(range(len(lower))):
            laterals[i] = laterals[i] + bilinear(laterals[i + 1], laterals[i].shape[1:3])
        size = laterals[0].shape[1:3]
        smooth = [unit(x, f'smooth_{i}', 3) for i, x in enumerate(laterals[:-1])] + [top]
        x = unit(jnp.concatenate([bilinear(x, size) for x in smooth], axis=-1), 'fuse', 3)
        x = _dropped(x, self.dropout, keys, 'head')
        return _classifier(self.classes, self.dtype, 'classify')(x).astype(jnp.float32)


class FCNHead(nn.Module):
    """A 3x3 convolution unit and a linear layer: logits float32 [B,h,w,classes] of a map.
    Parameters: unit, classify.
    """

    classes: int
    channels: int
    dropout: float
    dtype: str = 'float32'

    @nn.compact
    def __call__(self, x, *, keys=None):
        x = ConvUnit(self.channels, 3, self.dtype, name='unit')(x, train=keys is not None)
        x = _dropped(x, self.dropout, keys, 'auxiliary')
        return _classifier(self.classes, self.dtype, 'classify')(x).astype(jnp.float32)


def _classifier(classes, dtype, name):
    """The last layer, whose kernel starts as a normal of deviation 0.01, as mmseg's."""
    start = nn.initializers.normal(0.01)
    return nn.Dense(classes, dtype=dtype, kernel_init=start, name=name)


def _dropped(x, rate, keys, name):
    """x [B,h,w,C] with whole channels of an image set to zero, the others scaled up."""
    if keys is None or not rate:
        return x
    draw = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - rate, x.shape[-1:]))
    kept = draw(named_keys.named(keys, f'dropout {name}'))
    return jnp.where(kept[:, None, None], x / (1 - rate), 0).astype(x.dtype)
