"""MaskAlign (Xue et al., CVPR 2023, arXiv 2211.08887): align visible tokens, reconstruct nothing.

A teacher sees the whole image, the student the patches that the teacher attends to. Without any
decoder the student's visible tokens are aligned with the teacher's, at several levels at once.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import DISTANCES, SmoothL1, standardize_tokens
from mim_jax.masking import MASKINGS, WeightedMasking, visible_ids
from mim_jax.models.heads import LevelHeads
from mim_jax.models.vit import Encoded, ViT
from mim_jax.morphing import Morphing, placed
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.targeted import Targeted
from mim_jax.panels import Sheets
from mim_jax.targets import Teacher

WHITEN_EPS = 1e-5  # of PyTorch's layer norm


@dataclasses.dataclass(frozen=True)
class MaskAlign(Targeted):
    """The defaults are those of the released recipe.

    masking: 'attention' keeps patches drawn by the teacher's attention; or one of MASKINGS.
    levels: so many of the teacher's last blocks are aligned.
    fusion: how the student's blocks are mixed for a level, see `LevelHeads`.
    distance: of tokens at one level. Times `scale`, 2, smooth L1 is the square of small errors.
    morphing: groups of visible patches, over which prediction and target are averaged.
    """

    masking: Any = choice(MASKINGS | {'attention': WeightedMasking}, 'attention')
    target: Any = choice({'teacher': Teacher}, 'teacher')
    levels: int = 5
    fusion: Literal['linear', 'sum', 'none'] = 'linear'
    distance: Any = choice(DISTANCES, SmoothL1(beta=1.0))
    scale: float = 2.0
    morphing: Morphing = dataclasses.field(default_factory=lambda: Morphing(schedule='none'))

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        teacher = self.target.model
        if not (encoder.class_token and teacher.class_token):
            raise UserError(
                'MaskAlign aligns class tokens: set config.model.class_token and '
                'config.objective.target.model.class_token to True.'
            )
        if not self.target.layer is self.target.projection is None:
            raise UserError(
                "MaskAlign aligns what the teacher's last blocks give, as it is: set "
                'config.objective.target.layer and config.objective.target.projection to None.'
            )
        if not 1 <= self.levels <= teacher.depth:
            raise UserError(
                f'config.objective.levels = {self.levels}: the teacher has {teacher.depth} blocks.'
            )
        if self.fusion != 'sum' and encoder.depth != teacher.depth:
            raise UserError(
                f'config.objective.fusion = {self.fusion!r} needs as many blocks in the student '
                f'({encoder.depth}) as in the teacher ({teacher.depth}); change '
                "config.model.depth, or set fusion to 'sum'."
            )
        bound = super().bind(encoder, inputs, clock)
        self.morphing.check(bound.num_visible, grid=False)
        return bound

    @property
    def batch_parts(self) -> int:
        return self.morphing.shares(self.num_visible)

    @property
    def num_visible(self) -> int:
        return self.grid[0] * self.grid[1] - self.masking.count(self.grid)

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens = jnp.zeros((1, self.encoder.depth, self.encoder.width))
        return {'align': self._heads(features).init(key, tokens)['params']}

    def teach(self, variables: Variables, images: jax.Array) -> Encoded:
        """What the teacher says of whole images [B,H,W,C]: its aligned levels, its attention."""
        last = (self.target.model.depth,) if isinstance(self.masking, WeightedMasking) else ()
        teacher = variables['teacher']
        return self.target.encode(teacher, images, layers=self._aligned(), attention=last)

    def hide(self, batch: Batch, taught: Encoded) -> tuple[jax.Array, jax.Array | None]:
        """Attention masking: hidden patches [B,N], and the importance [B,N] by which the visible
        ones are drawn: the mean over the heads of the class token's last attention.
        """
        drawn = keys.named(batch['keys'], 'mask')
        if not taught.attention:
            return self.masking(drawn, grid=self.grid), None
        importance = taught.attention[self.target.model.depth].mean(axis=1)
        return self.masking(drawn, grid=self.grid, weights=importance), importance

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array:
        return self.hide(batch, self.teach(variables, batch['images']))[0]

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        with jax.named_scope('target'):
            taught = self.teach(variables, batch['images'])
            visible = visible_ids(self.hide(batch, taught)[0], num_visible=self.num_visible)
            target = self.whitened(taught, visible)
        with jax.named_scope('student'):
            drop_path = keys.named(batch['keys'], 'drop_path')
            prediction = self.align(variables['params'], batch['images'], visible, drop_path)
        with jax.named_scope('morphing'):
            own = keys.named(batch['keys'], 'morphing')
            pairs = self.morphing.pairs(key, _patches(prediction), _patches(target), keys=own)
            classes = self.distance(prediction[:, :1], target[:, :1])  # class tokens stay alone
            losses = []
            for pair in pairs:
                p, t = (x.reshape(*x.shape[:2], self.levels, -1) for x in pair)
                losses.append(jnp.concatenate([classes, self.distance(p, t)], axis=1).mean())
        return self.scale * jnp.mean(jnp.stack(losses)), {}, {}

    def align(
        self, params: Any, images: jax.Array, visible: jax.Array, drop_path_keys: Any = None
    ) -> jax.Array:
        """Dynamic Alignment: from all of the student's blocks, class token and tokens at the places
        `visible` [B,K] as the teacher's levels have them, float32 [B,1+K,levels,D].
        """
        blocks = tuple(range(1, self.encoder.depth + 1))
        seen = self.encode(params, images, visible=visible, keys=drop_path_keys, layers=blocks)
        heads = self._heads(params['align']['heads']['linear']['bias'].shape[-1])
        return heads.apply({'params': params['align']}, _stacked(seen, blocks))

    def whitened(self, taught: Encoded, visible: jax.Array) -> jax.Array:
        """The target, shaped as the prediction: hidden states, each standardised by itself."""
        tokens = _stacked(taught, self._aligned())
        places = jnp.pad(visible + 1, ((0, 0), (1, 0)))[:, :, None, None]  # class token: place 0
        return standardize_tokens(jnp.take_along_axis(tokens, places, axis=1), eps=WHITEN_EPS)

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        taught = self.teach(variables, batch['images'])
        mask, importance = self.hide(batch, taught)
        visible = visible_ids(mask, num_visible=self.num_visible)
        own = keys.named(batch['keys'], 'morphing')
        groups = self.morphing.panels(_patches(self.whitened(taught, visible)), keys=own)
        sheet = [panels.Mask(mask)]
        if importance is not None:
            sheet.insert(0, panels.HeatMap(importance, title="teacher's attention"))
        for group in groups:
            values = placed(group.values, visible, num_tokens=mask.shape[1])
            sheet.append(group.replace(values=values))
        return {'groups' if groups else 'mask': sheet}

    def _aligned(self) -> tuple[int, ...]:
        depth = self.target.model.depth
        return tuple(range(depth - self.levels + 1, depth + 1))

    def _heads(self, features: int) -> LevelHeads:
        initialization, dtype = self.encoder.initialization, self.encoder.dtype
        return LevelHeads(self._aligned(), features, self.fusion, initialization, dtype)


def _stacked(encoded: Encoded, blocks: tuple[int, ...]) -> jax.Array:
    """Class token and tokens after these blocks, [B,1+N,L,D]."""
    layers = [encoded.layers[block] for block in blocks]
    return jnp.stack(
        [jnp.concatenate([x.class_token[:, None], x.tokens], axis=1) for x in layers], axis=2
    )


def _patches(levels: jax.Array) -> jax.Array:
    """[B,1+K,L,D] without the class token, the levels side by side, [B,K,L*D]."""
    return levels[:, 1:].reshape(levels.shape[0], levels.shape[1] - 1, -1)
