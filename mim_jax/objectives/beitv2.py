"""BEiT v2 (Peng et al., arXiv 2208.06366): predict the visual tokens of hidden patches.

A frozen tokenizer (`vqkd.py`) says which code each patch has. Beside the encoder's own prediction
a branch of two blocks predicts the same from the last class token and the patch tokens of an
earlier block, so that the class token has to gather what the image holds.
"""

import dataclasses
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import recognition
from mim_jax.masking import MASKINGS
from mim_jax.models.decoders import PatchAggregation
from mim_jax.models.heads import TokenHead
from mim_jax.models.vit import Encoded, ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.masked import Masked
from mim_jax.objectives.morphed import Morphed
from mim_jax.objectives.targeted import Targeted
from mim_jax.panels import Sheets
from mim_jax.ranges import Depth, Range
from mim_jax.targets.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class BEiTv2(Masked, Morphed, Targeted):
    """The defaults are those of the released code.

    target: the tokenizer.
    morphing: with a schedule other than 'none', tokenizer encodings and student tokens are averaged
      over groups of the encodings; the target of a group is the code nearest to its mean encoding.
      The DTM paper does not spell out how it morphs codes: this is the form in which 'none' is
      BEiT v2 itself and a code is again a code.
    branch_layer: the branch takes the patch tokens after so many blocks.
    branch_depth: blocks of the branch; 0 leaves it out.
    """

    masking: Any = choice(MASKINGS, 'block')
    target: Tokenizer = Tokenizer()
    branch_layer: Depth = 9
    branch_depth: Annotated[int, Range(0, 1000)] = 2

    needs = ('mask_token', 'class_token', 'final_norm')

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        if self.branch_depth and not 1 <= self.branch_layer < encoder.depth:
            raise UserError(
                f'config.objective.branch_layer = {self.branch_layer}: the encoder has '
                f'{encoder.depth} blocks; choose one before the last.'
            )
        return super().bind(encoder, inputs, clock)

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens = jnp.zeros((1, 1, self.encoder.width))
        params = {'head': self._head().init(keys.named(key, 'head'), tokens)['params']}
        if self.branch_depth:
            tokens = jnp.zeros((1, 1 + self.num_patches, self.encoder.width))
            key = keys.named(key, 'branch')
            params['branch'] = self._branch().init(key, tokens)['params']
        return params

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        images, params = batch['images'], variables['params']
        mask = self.mask(variables, batch, step)
        hidden = self.places(mask)[1][..., None]
        with jax.named_scope('student'):
            outputs = self.student(params, images, mask, drop_path_keys=batch['keys'])
        with jax.named_scope('target'):
            encodings = self.targets(variables, images)
        losses, hits = [], []
        with jax.named_scope('morphing'):
            # The head is linear: the mean of a group's tokens gives the mean of their logits.
            tokens = jnp.concatenate(outputs, axis=-1)
            pairs = self.morphing.pairs(key, tokens, encodings, **self.morphed(batch))
        for tokens, encodings in pairs:
            codes = self.target.codes(encodings, variables=variables)
            codes = jnp.take_along_axis(codes, hidden[..., 0], axis=1)
            tokens = jnp.take_along_axis(tokens, hidden, axis=1)
            for part in jnp.split(tokens, len(outputs), axis=-1):
                logits = self._head().apply({'params': params['head']}, part)
                entropy, hit = recognition(logits, codes)
                losses.append(entropy)
                hits.append(hit)
        # Both outputs have weight 1; draws of schedules are averaged.
        loss = sum(losses) / len(pairs)
        return loss, {'accuracy': sum(hits[:: len(outputs)]) / len(pairs)}, {}

    def student(
        self, params: Any, images: jax.Array, mask: jax.Array, drop_path_keys: Any = None
    ) -> list[jax.Array]:
        """Normalised patch tokens [B,N,D]: the encoder's, and where there is one the branch's."""
        layers = (self.branch_layer, self.encoder.depth) if self.branch_depth else ()
        own = keys.named(drop_path_keys, 'drop_path')
        encoded = self.encode(params, images, mask=mask, keys=own, layers=layers)
        outputs = [encoded.tokens]
        if self.branch_depth:
            early, last = (encoded.layers[block] for block in layers)
            branch = self._branch().apply(
                {'params': params['branch']},
                jnp.concatenate([last.class_token[:, None], early.tokens], axis=1),
                drop_path_keys=keys.named(drop_path_keys, 'branch'),
                shared=params['encoder'].get('relative_position'),
            )
            # The encoder's final norm serves both.
            branch = self.encoder.normed(params['encoder'], Encoded(branch[:, 1:]))
            outputs.append(branch.tokens)
        return outputs

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        hidden = panels.Mask(self.mask(variables, batch, step))
        target, given = self.grouped(variables, batch)
        groups = self.morphing.panels(target, **given)
        return {'groups': [hidden, *groups]} if groups else {'mask': [hidden]}

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        return self.targets(variables, batch['images']), self.morphed(batch)

    def morphed(self, batch: Batch) -> dict[str, Any]:
        """What a grouping may look at beside the encodings."""
        named = keys.named(batch['keys'], 'morphing')
        return {'keys': named, 'images': batch['images'], 'grid': self.grid}

    def _head(self) -> TokenHead:
        return TokenHead(self.target.num_codes, self.encoder.initialization, self.encoder.dtype)

    def _branch(self) -> PatchAggregation:
        return PatchAggregation(self.encoder, self.grid, self.branch_layer, self.branch_depth)
