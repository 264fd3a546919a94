"""Where a token is: fixed and learned tables, and BEiT's relative position bias."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.models.initializers import TOKEN_INITS


def sincos_table(grid, width) -> np.ndarray:
    """Fixed 2-D sine-cosine table [h,w,width], float32, in MAE's order.

    The first half of the channels encodes the column, the second the row; each half is all sines,
    then all cosines, of position / 10000^(i / (width/4)). `width` must be divisible by 4.
    Source: facebookresearch/mae.
    """
    h, w = grid
    frequencies = 1.0 / 10000 ** (np.arange(width // 4) / (width / 4))

    def encode(positions):
        angles = positions[:, None] * frequencies
        return np.concatenate([np.sin(angles), np.cos(angles)], axis=-1)

    columns = np.broadcast_to(encode(np.arange(w))[None, :], (h, w, width // 2))
    rows = np.broadcast_to(encode(np.arange(h))[:, None], (h, w, width // 2))
    return np.concatenate([columns, rows], axis=-1).astype(np.float32)


RESIZES = {
    'bicubic': (jax.image.ResizeMethod.CUBIC_PYTORCH, False),
    'bicubic_antialias': (jax.image.ResizeMethod.CUBIC, True),
    'bilinear': (jax.image.ResizeMethod.LINEAR, False),
}


def resize_table(table, grid, *, method='bicubic'):
    """A table [h,w,D] on another grid, float32.

    'bicubic' is PyTorch's, the rule for learned tables in timm and transformers;
    'bicubic_antialias' PyTorch's with antialias=True (DINOv2 with registers); 'bilinear' the rule
    for relative tables in transformers.
    """
    if tuple(table.shape[:2]) == tuple(grid):
        return table
    rule, antialias = RESIZES[method]
    shape = (*grid, table.shape[-1])
    return jax.image.resize(table.astype(jnp.float32), shape, rule, antialias=antialias)


def stored_grid(module, name, *, grid, stored):
    """Size of a table of `module`: the stated one, the parameter's, or at first the image's."""
    if stored is not None:
        return tuple(stored)
    if module.has_variable('params', name):
        return tuple(module.get_variable('params', name).shape[:2])
    return tuple(grid)


class LearnedPosition(nn.Module):
    """Learned table `patches` [h,w,D], and an entry `class_token` [D] where there is a class token.

    Returns (positions [N,D] on `grid`, class position [D] or None), float32.
    """

    width: int
    class_token: bool
    stored: tuple[int, ...] | None = None
    resize: str = 'bicubic'
    initialization: str = 'normal'

    @nn.compact
    def __call__(self, grid):
        stored = stored_grid(self, 'patches', grid=grid, stored=self.stored)
        init = TOKEN_INITS[self.initialization]
        table = self.param('patches', init, (*stored, self.width))
        class_position = None
        if self.class_token:
            class_position = self.param('class_token', init, (self.width,))
        table = resize_table(table, grid, method=self.resize)
        return table.reshape(-1, self.width), class_position


class RelativePosition(nn.Module):
    """BEiT's relative position bias: attention logits that depend on the offset of two patches.

    Parameters: `patches` [2h-1, 2w-1, heads], entry (dy+h-1, dx+w-1) for the offset query - key;
    and with a class token `class_token` [3, heads]: class to patch, patch to class, class to class
    (the last three rows of BEiT's flat table). Register tokens have no bias.

    `grid` (h,w) is the image's, `stored` that of the table (None: the parameter's own, at first the
    image's). Call: `visible_ids` [B,K] or None. Returns float32 [1 or B, heads, S, S] with
    S = class + registers + patches (or visible patches).
    Source: microsoft/unilm, beit; Bao et al., ICLR 2022.
    """

    heads: int
    grid: tuple[int, ...]
    class_token: bool = False
    num_registers: int = 0
    stored: tuple[int, ...] | None = None

    @nn.compact
    def __call__(self, visible_ids=None):
        h, w = self.grid
        spans = stored_grid(
            self,
            'patches',
            grid=(2 * h - 1, 2 * w - 1),
            stored=None if self.stored is None else tuple(2 * n - 1 for n in self.stored),
        )
        table = self.param('patches', nn.initializers.zeros, (*spans, self.heads))
        table = resize_table(table, (2 * h - 1, 2 * w - 1), method='bilinear')
        bias = spread_offsets(table, grid=self.grid)[None]
        if visible_ids is not None:
            bias = jax.vmap(lambda ids: bias[0][:, ids][:, :, ids])(visible_ids)
        prefix = int(self.class_token) + self.num_registers
        bias = jnp.pad(bias, ((0, 0), (0, 0), (prefix, 0), (prefix, 0)))
        if self.class_token:
            ends = self.param('class_token', nn.initializers.zeros, (3, self.heads))
            to_patch, from_patch, to_itself = ends[:, None, :, None]
            bias = bias.at[:, :, 0, prefix:].set(to_patch)
            bias = bias.at[:, :, prefix:, 0].set(from_patch)
            bias = bias.at[:, :, 0, 0].set(to_itself[..., 0])
        return bias


def spread_offsets(table, *, grid):
    """Offsets [2h-1,2w-1,heads] spread to every pair of patches, [heads,N,N].

    Products with constant 0/1 matrices, one per axis, instead of a gather of N x N entries: exact,
    and the gradient is a product as well, where a gather's would be a scatter that serialises on
    accelerators.
    """
    h, w = grid
    rows = np.arange(h)[:, None] - np.arange(h)[None] + h - 1
    columns = np.arange(w)[:, None] - np.arange(w)[None] + w - 1
    pick_rows = np.eye(2 * h - 1, dtype=np.float32)[rows]
    pick_columns = np.eye(2 * w - 1, dtype=np.float32)[columns]
    highest = jax.lax.Precision.HIGHEST
    by_row = jnp.einsum('acr,rsk->kacs', pick_rows, table, precision=highest)
    pairs = jnp.einsum('bds,kacs->kabcd', pick_columns, by_row, precision=highest)
    return pairs.reshape(-1, h * w, h * w)
