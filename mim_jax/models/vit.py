"""One Vision Transformer for students and teachers (Dosovitskiy et al., ICLR 2021)."""

import dataclasses
import functools
import operator
from typing import Annotated, Any

import flax
import flax.linen as nn
import jax
import jax.numpy as jnp

from mim_jax import keys
from mim_jax.errors import UserError
from mim_jax.models.attention import KERNELS, QKV_BIASES
from mim_jax.models.attention_kernels import check_cudnn
from mim_jax.models.blocks import REMAT_POLICIES, drop_path_factors, stacked_blocks
from mim_jax.models.initializers import INITS, TOKEN_INITS
from mim_jax.models.patches import patch_grid, patchify
from mim_jax.models.positions import LearnedPosition, RelativePosition, sincos_table
from mim_jax.models.tokenwise import ACTIVATIONS, Linear, layer_norm
from mim_jax.ranges import Depth, Fraction, NotNegative, Positive, Range, Side, Width

BLOCK_OPTIONS = (
    'scan',
    'remat',
    'heads',
    'mlp_ratio',
    'layer_scale',
    'qkv_bias',
    'activation',
    'norm_eps',
    'initialization',
    'dtype',
    'attention_kernel',
)
CHOICES = {
    'position': ('sincos', 'learned', 'none'),
    'position_resize': ('bicubic', 'bicubic_antialias'),
    'relative_position': ('none', 'shared', 'per_block', 'both'),
    'qkv_bias': QKV_BIASES,
    'activation': tuple(ACTIVATIONS),
    'initialization': INITS,
    'token_initialization': tuple(TOKEN_INITS),
    'remat': ('none', *REMAT_POLICIES),
    'dtype': ('float32', 'bfloat16'),
    'attention_kernel': ('auto', *KERNELS),
}


@flax.struct.dataclass
class Encoded:
    """What the encoder returns, in its compute dtype.

    tokens [B,N,D] (patch tokens; [B,K,D] with visible_ids), class_token [B,D] or None, registers
    [B,R,D] or None. The rest is what was asked for, keyed by the number of the block (1 to depth):

    layers: an `Encoded` of tokens, class token and registers after that block, before the final
      norm.
    attention: float32 [B,heads,N|K], the weights with which the class token attends to the patches
      in that block; with those to itself and the registers they sum to one.
    queries_keys: that block's queries and keys, each [B,S,heads,head width], of all tokens: class
      token, registers, patches.
    hook_state: the hook's state after the last block.
    """

    tokens: jax.Array
    class_token: jax.Array | None = None
    registers: jax.Array | None = None
    layers: dict[int, 'Encoded'] = dataclasses.field(default_factory=dict)
    attention: dict[int, jax.Array] = dataclasses.field(default_factory=dict)
    queries_keys: dict[int, tuple[jax.Array, jax.Array]] = dataclasses.field(default_factory=dict)
    hook_state: Any = None

    @property
    def class_and_patches(self) -> jax.Array:
        """All tokens but the registers: [B,1+N,D], or without a class token [B,N,D]."""
        if self.class_token is None:
            return self.tokens
        return jnp.concatenate([self.class_token[:, None], self.tokens], axis=1)

    def stacked(self, blocks: tuple[int, ...]) -> jax.Array:
        """Class token and patches after these blocks, [B,1+N,L,D]; `layers` holds them."""
        return jnp.stack([self.layers[block].class_and_patches for block in blocks], axis=2)


@dataclasses.dataclass(frozen=True)
class ViT:
    """A Vision Transformer's fields (the `model` section of a config) and its two pure functions.

    Parameters are float32, those of the blocks stacked on a leading depth axis:
    patch_embed/{kernel [p*q*C,D], bias}, class_token [D], registers [R,D], mask_token [D],
    position/{patches [h,w,D], class_token [D]}, relative_position/{patches [2h-1,2w-1,heads],
    class_token [3,heads]}, pre_norm, blocks/{norm1, attention/{qkv,out}, layer_scale1, norm2,
    mlp/{fc1,fc2}, layer_scale2, relative_position, modulation}, final_norm.
    """

    patch_size: tuple[Side, ...] = (16, 16)
    width: Width = 768
    depth: Depth = 12
    heads: Width = 12
    mlp_ratio: Positive = 4.0
    class_token: bool = True
    num_registers: Annotated[int, Range(0, 1000)] = 0
    position: str = 'sincos'
    position_resize: str = 'bicubic'  # of a learned table on another grid
    relative_position: str = 'none'
    mask_token: bool = False
    layer_scale: NotNegative | None = None  # initial value; None: no layer scale
    drop_path: Fraction = 0.0  # rate of the last block; rises linearly from 0
    attention_dropout: Fraction = 0.0  # of the attention's weights, in all blocks
    qkv_bias: str = 'all'
    patch_bias: bool = True
    pre_norm: bool = False  # a LayerNorm between embedding and blocks, as in CLIP
    final_norm: bool = True
    activation: str = 'gelu'
    norm_eps: Positive = 1e-6
    initialization: str = 'mae'
    token_initialization: str = 'normal'  # of tokens and learned positions; BEiT's are 'cut'
    condition_width: Width | None = None  # of what conditions the blocks' norms; None: plain norms
    grid: tuple[Side, ...] | None = None  # position tables are stored for it; None: first image's
    scan: bool = True  # False: blocks unrolled (longer compilation, same parameters)
    remat: str = 'none'
    dtype: str = 'float32'  # of the computation; parameters are float32
    attention_kernel: str = 'auto'  # or one of KERNELS: docs/models.md

    def __post_init__(self):
        for name in ('patch_size', 'grid'):
            value = getattr(self, name)
            if value is not None and len(value) == 1:
                object.__setattr__(self, name, tuple(value) * 2)
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(
                    f'{field} is {getattr(self, field)!r}, allowed: {", ".join(allowed)}'
                )
        if self.width % self.heads:
            raise ValueError(f'width {self.width} is not divisible by heads {self.heads}')
        if self.position == 'sincos' and self.width % 4:
            raise ValueError(f'position sincos needs a width divisible by 4, got {self.width}')
        if self.grid is not None and len(self.grid) != 2:
            raise ValueError(f'grid needs (rows, columns), got {tuple(self.grid)}')
        if self.attention_kernel == 'cudnn':
            check_cudnn(width=self.width // self.heads, dtype=self.dtype)
        if self.attention_kernel not in ('auto', 'xla') and self.attention_dropout:
            raise ValueError(
                f'attention_kernel {self.attention_kernel!r} drops no weights: set '
                "attention_dropout to 0, or the kernel to 'xla'"
            )
        if len(self.patch_size) != 2:
            raise ValueError(f'patch_size needs (height, width), got {tuple(self.patch_size)}')

    @property
    def module(self) -> nn.Module:
        """The Linen module with these fields."""
        return VisionTransformer(self)

    @property
    def prefix(self) -> int:
        """How many tokens, class token and registers, come before the patches."""
        return int(self.class_token) + self.num_registers

    @property
    def block_options(self) -> dict:
        """Arguments of `stacked_blocks` for blocks like this encoder's, without condition."""
        return {name: getattr(self, name) for name in BLOCK_OPTIONS}

    def init(self, key, images):
        """Variables {'params': ...} for images shaped [B,H,W,C] like `images` (values unused)."""
        return _init(self.module, key, images.shape[1:])

    def apply(
        self,
        variables,
        images,
        *,
        mask=None,
        visible_ids=None,
        drop_path_keys=None,
        layers=(),
        attention=(),
        queries_keys=(),
        condition=None,
        hook=None,
    ) -> Encoded:
        """Encodes normalised images [B,H,W,C].

        mask [B,N] bool: hidden patches' embeddings become the mask token, before any position.
        visible_ids [B,K] int32: only these patches are encoded, positions added before the choice.
        drop_path_keys: typed keys [B] for drop path and attention dropout; None is deterministic.
        layers, attention, queries_keys: numbers of blocks (1 to depth) of which these are returned
          too, see `Encoded`.
        condition [B,condition_width]: what the blocks' adaptive layer norm follows.
        hook: a `mim_jax.models.hooks.Hook`: what is done to the tokens in every block.
        """
        asked = {'layers': layers, 'attention': attention, 'queries_keys': queries_keys}
        asked = {name: tuple(blocks) for name, blocks in asked.items()}
        self._check(asked, condition)
        return self.module.apply(
            variables,
            images,
            mask=mask,
            visible_ids=visible_ids,
            drop_path_keys=drop_path_keys,
            asked=asked,
            condition=condition,
            hook=hook,
        )

    def normed(self, params, encoded) -> Encoded:
        """Tokens of a layer, an `Encoded` as in `Encoded.layers`, through the final norm (if there
        is one): what they would be if that layer were the last.
        """
        if not self.final_norm:
            return encoded
        norm = layer_norm(self.norm_eps, self.dtype, None)
        variables = {'params': params['final_norm']}
        return jax.tree.map(functools.partial(norm.apply, variables), encoded)

    def _check(self, asked, condition):
        """Raises ValueError for what this encoder cannot give, UserError for a useless field."""
        for name, blocks in asked.items():
            if not all(1 <= block <= self.depth for block in blocks):
                raise ValueError(f'{name} = {blocks} is not among the blocks 1 to {self.depth}')
        if asked['attention'] and not self.class_token:
            raise ValueError(
                'attention is that of the class token: it needs a model with class_token=True'
            )
        if condition is None and self.condition_width is not None:
            raise UserError(
                f'the model has condition_width = {self.condition_width}, but this method has '
                'nothing to condition it on: set condition_width to None.'
            )
        if condition is not None and condition.shape[-1] != self.condition_width:
            raise ValueError(
                f'a condition of width {condition.shape[-1]} needs a model with that '
                f'condition_width, not {self.condition_width}'
            )


@functools.partial(jax.jit, static_argnums=(0, 2))
def _init(module, key, image_shape):
    width = module.config.condition_width
    condition = None if width is None else jnp.zeros((1, width))
    images = jnp.zeros((1, *image_shape))
    return module.init(key, images, condition=condition, every_parameter=True)


class VisionTransformer(nn.Module):
    """The Linen module of `ViT`; see there for the meaning of fields and arguments."""

    config: ViT

    @nn.compact
    def __call__(
        self,
        images,
        *,
        mask=None,
        visible_ids=None,
        drop_path_keys=None,
        asked=None,
        condition=None,
        hook=None,
        every_parameter=False,
    ):
        c = self.config
        grid = patch_grid(images.shape[1:3], c.patch_size)
        x = self.embed(images, grid, mask, visible_ids, every_parameter)
        stored = c.grid and tuple(c.grid)
        relative = functools.partial(
            RelativePosition, c.heads, grid, c.class_token, c.num_registers, stored
        )
        bias = None
        if c.relative_position in ('shared', 'both'):
            bias = relative(name='relative_position')(visible_ids)
        keep = None
        if drop_path_keys is not None and c.drop_path > 0:
            keep = drop_path_factors(drop_path_keys, rate=c.drop_path, depth=c.depth)
        attention_keys = None
        if drop_path_keys is not None and c.attention_dropout > 0:
            attention_keys = keys.named(drop_path_keys, 'attention')
        asked = asked or {}
        carry, tapped = stacked_blocks(
            c.depth,
            **c.block_options,
            condition_width=c.condition_width,
            attention_dropout=c.attention_dropout,
            relative=relative if c.relative_position in ('per_block', 'both') else None,
            taps=tuple(name for name, blocks in asked.items() if blocks),
        )(
            x if hook is None else (x, hook.start(x)),
            keep=keep,
            bias=bias,
            attention_keys=attention_keys,
            visible_ids=visible_ids,
            condition=condition,
            hook=hook,
        )
        x, state = (carry, None) if hook is None else carry
        if c.final_norm:
            x = layer_norm(c.norm_eps, c.dtype, 'final_norm')(x)

        def chosen(name):
            # What is tapped has a leading depth axis.
            return {
                block: jax.tree.map(operator.itemgetter(block - 1), tapped[name])
                for block in asked.get(name, ())
            }

        return self.split(x).replace(
            layers={block: self.split(x) for block, x in chosen('layers').items()},
            attention={block: row[..., c.prefix :] for block, row in chosen('attention').items()},
            queries_keys=chosen('queries_keys'),
            hook_state=state,
        )

    def split(self, x):
        """Tokens [B,S,D] as an `Encoded` of class token, registers and patches."""
        c = self.config
        return Encoded(
            tokens=x[:, c.prefix :],
            class_token=x[:, 0] if c.class_token else None,
            registers=x[:, c.prefix - c.num_registers : c.prefix] if c.num_registers else None,
        )

    def embed(self, images, grid, mask, visible_ids, every_parameter):
        """Class token, registers and patch embeddings with positions, [B,S,D]."""
        c = self.config
        token_init = TOKEN_INITS[c.token_initialization]
        patches = patchify(images, patch_size=c.patch_size)
        if visible_ids is not None:
            patches = jnp.take_along_axis(patches, visible_ids[..., None], axis=1)
        x = Linear(
            (c.width,),
            bias=c.patch_bias,
            initialization=c.initialization,
            dtype=c.dtype,
            name='patch_embed',
        )(patches)
        if c.mask_token and (mask is not None or every_parameter):
            mask_token = self.param('mask_token', token_init, (c.width,)).astype(c.dtype)
        if mask is not None:
            if not c.mask_token:
                raise ValueError('a mask needs a model with mask_token=True')
            hidden = mask
            if visible_ids is not None:
                hidden = jnp.take_along_axis(mask, visible_ids, axis=1)
            x = jnp.where(hidden[..., None], mask_token, x)
        positions, class_position = None, None
        if c.position == 'sincos':
            positions = jnp.asarray(sincos_table(grid, c.width).reshape(-1, c.width))
        elif c.position == 'learned':
            stored = c.grid and tuple(c.grid)
            positions, class_position = LearnedPosition(
                c.width,
                c.class_token,
                stored,
                c.position_resize,
                c.token_initialization,
                name='position',
            )(grid)
        if positions is not None:
            x += (positions[None] if visible_ids is None else positions[visible_ids]).astype(
                c.dtype
            )
        prefix = []
        if c.class_token:
            class_token = self.param('class_token', token_init, (c.width,))
            if class_position is not None:
                class_token = class_token + class_position  # may be NumPy: never in place
            prefix.append(class_token[None])
        if c.num_registers:
            prefix.append(self.param('registers', token_init, (c.num_registers, c.width)))
        if prefix:
            prefix = jnp.concatenate(prefix).astype(c.dtype)
            x = jnp.concatenate([jnp.broadcast_to(prefix, (x.shape[0], *prefix.shape)), x], axis=1)
        if c.pre_norm:
            x = layer_norm(c.norm_eps, c.dtype, 'pre_norm')(x)
        return x
