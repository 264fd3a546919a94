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
from mim_jax.masking import MASKINGS, WeightedMasking
from mim_jax.models.heads import LevelHeads, check_levels, side_by_side
from mim_jax.models.vit import Encoded, ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.masked import Masked
from mim_jax.objectives.morphed import Morphed
from mim_jax.objectives.targeted import Targeted
from mim_jax.panels import Sheets
from mim_jax.ranges import Depth, Positive
from mim_jax.targets import Teacher


@dataclasses.dataclass(frozen=True)
class MaskAlign(Masked, Morphed, Targeted):
    """The defaults are those of the released recipe.

    masking: 'attention' keeps patches drawn by the teacher's attention; or one of MASKINGS.
    levels: so many of the teacher's last blocks are aligned.
    fusion: how the student's blocks are mixed for a level, see `LevelHeads`.
    distance: of tokens at one level. Times `scale`, 2, smooth L1 is the square of small errors.
    morphing: groups visible patches alone.
    """

    masking: Any = choice(MASKINGS | {'attention': WeightedMasking}, 'attention')
    target: Any = choice({'teacher': Teacher}, 'teacher')
    levels: Depth = 5
    fusion: Literal['linear', 'sum', 'none'] = 'linear'
    distance: Any = choice(DISTANCES, SmoothL1(beta=1.0))
    scale: Positive = 2.0

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
        check_levels(self.levels, self.fusion, student=encoder.depth, teacher=teacher.depth)
        return super().bind(encoder, inputs, clock)

    num_grouped = Masked.num_visible

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens = jnp.zeros((1, self.encoder.depth, self.encoder.width))
        return {'align': self._heads(features).init(key, tokens)['params']}

    def teach(self, variables: Variables, images: jax.Array) -> Encoded:
        """What the teacher says of whole images [B,H,W,C]: its aligned levels, its attention."""
        last = (self.target.model.depth,) if isinstance(self.masking, WeightedMasking) else ()
        taps = {'layers': self._aligned(), 'attention': last}
        return self.target.encode(variables['teacher'], images, **taps)

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
            visible = self.visible(self.hide(batch, taught)[0])
            target = self.whitened(taught, visible)
        with jax.named_scope('student'):
            drop_path = keys.named(batch['keys'], 'drop_path')
            prediction = self.align(variables['params'], batch['images'], visible, drop_path)
        with jax.named_scope('morphing'):
            p, t = map(side_by_side, (prediction, target))
            pairs = self.morphing.pairs(key, p, t, keys=keys.named(batch['keys'], 'morphing'))
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
        return heads.apply({'params': params['align']}, seen.stacked(blocks))

    def whitened(self, taught: Encoded, visible: jax.Array) -> jax.Array:
        """The target, shaped as the prediction: hidden states, each through a layer norm."""
        tokens = taught.stacked(self._aligned())
        places = jnp.pad(visible + 1, ((0, 0), (1, 0)))[:, :, None, None]  # class token: place 0
        return standardize_tokens(jnp.take_along_axis(tokens, places, axis=1), eps=1e-5)

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        mask, importance = self.hide(batch, self.teach(variables, batch['images']))
        target, given = self.grouped(variables, batch)
        given |= {'places': self.visible(mask), 'num_tokens': self.num_patches}
        groups = self.morphing.panels(target, **given)
        sheet = [panels.Mask(mask), *groups]
        if importance is not None:
            sheet.insert(0, panels.HeatMap(importance, title="teacher's attention"))
        return {'groups' if groups else 'mask': sheet}

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        taught = self.teach(variables, batch['images'])
        visible = self.visible(self.hide(batch, taught)[0])
        target = side_by_side(self.whitened(taught, visible))
        return target, {'keys': keys.named(batch['keys'], 'morphing')}

    def _aligned(self) -> tuple[int, ...]:
        depth = self.target.model.depth
        return tuple(range(depth - self.levels + 1, depth + 1))

    def _heads(self, features: int) -> LevelHeads:
        initialization, dtype = self.encoder.initialization, self.encoder.dtype
        return LevelHeads(self._aligned(), features, self.fusion, initialization, dtype)
