"""CAE, the context autoencoder (Chen et al., IJCV 2023, arXiv 2202.03026).

The encoder sees visible patches alone, and is left with making representations: a latent regressor
foretells those of the hidden patches, in the encoder's own space, and a decoder, which sees nothing
but these, says which visual token each hidden patch has.
"""

import dataclasses
import functools
from typing import Annotated, Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.config import choice
from mim_jax.losses import recognition
from mim_jax.masking import MASKINGS, BlockMasking, in_places
from mim_jax.models.heads import TokenHead
from mim_jax.models.regressor import LatentRegressor, PlacedBlocks
from mim_jax.objectives.base import Batch, Variables
from mim_jax.objectives.masked import Masked
from mim_jax.objectives.morphed import Morphed
from mim_jax.objectives.targeted import Targeted
from mim_jax.panels import Sheets
from mim_jax.ranges import Depth, NotNegative, Range
from mim_jax.targets.tokenizer import TOKENIZERS


@dataclasses.dataclass(frozen=True)
class CAE(Masked, Morphed, Targeted):
    """The defaults are those of the released recipe.

    target: the tokenizer, one of TOKENIZERS: DALL-E's, or a run of `vqkd`.
    regressor_depth, decoder_depth: blocks of cross-attention, and of self-attention among the
      hidden tokens.
    alignment_weight: of the mean square between what is foretold and what the encoder says of the
      hidden patches when it sees these alone.
    morphing: groups hidden patches by the tokenizer's encodings. Codes as in BEiT v2: a group's is
      the one nearest to its mean encoding. What is aligned is averaged over the same groups.
    """

    masking: Any = choice(MASKINGS, BlockMasking(num_masked=98, min_block=16))
    target: Any = choice(TOKENIZERS, 'dalle')
    regressor_depth: Depth = 4
    decoder_depth: Annotated[int, Range(0, 1000)] = 4
    alignment_weight: NotNegative = 2.0

    num_grouped = Masked.num_hidden

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        tokens, ids = jnp.zeros((1, 1, self.encoder.width)), jnp.zeros((1, 1), jnp.int32)
        places = {'visible_ids': ids, 'hidden_ids': ids}
        named = {part: keys.named(key, part) for part in ('regressor', 'decoder', 'head')}
        return {
            'regressor': self._regressor().init(named['regressor'], tokens, **places)['params'],
            'decoder': self._decoder().init(named['decoder'], tokens, ids)['params'],
            'head': self._head().init(named['head'], tokens)['params'],
        }

    def latents(
        self, params: Any, batch: Batch, visible: jax.Array, hidden: jax.Array, train: bool = False
    ) -> tuple[jax.Array, jax.Array, jax.Array]:
        """The encoder's tokens of the visible patches [B,K,D], those foretold of the hidden ones
        [B,M,D], and the target of these: the encoder's where it sees the hidden patches alone.
        """
        drawn = functools.partial(keys.named, batch['keys'] if train else None)
        seen = self.encode(params, batch['images'], visible=visible, keys=drawn('drop_path')).tokens
        foretold = self._regressor().apply(
            {'params': params['regressor']},
            seen,
            visible_ids=visible,
            hidden_ids=hidden,
            drop_path_keys=drawn('regressor'),
        )
        # The same weights without gradient; with drop path, as in the released code.
        still = jax.lax.stop_gradient({'encoder': params['encoder']})
        aim = self.encode(still, batch['images'], visible=hidden, keys=drawn('alignment')).tokens
        return tuple(x.astype(jnp.float32) for x in (seen, foretold, aim))

    def decode(self, params: Any, foretold: jax.Array, hidden: jax.Array) -> jax.Array:
        """Normalised tokens [B,M,D] for the head, from those of the hidden patches alone."""
        tokens = foretold.astype(self.encoder.dtype)
        return self._decoder().apply({'params': params['decoder']}, tokens, hidden)

    def grouped(self, variables: Variables, batch: Batch) -> tuple[jax.Array, dict[str, Any]]:
        """The tokenizer's encodings at the hidden patches."""
        _, hidden = self.places(self.mask(variables, batch, jnp.int32(0)))
        encodings = self.targets(variables, batch['images'])
        given = {'keys': keys.named(batch['keys'], 'morphing')}
        return jnp.take_along_axis(encodings, hidden[..., None], axis=1), given

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        params = variables['params']
        with jax.named_scope('student'):
            visible, hidden = self.places(self.mask(variables, batch, step))
            _, foretold, aim = self.latents(params, batch, visible, hidden, train=True)
            decoded = self.decode(params, foretold, hidden)
        with jax.named_scope('target'):
            encodings, given = self.grouped(variables, batch)
        with jax.named_scope('morphing'):
            # The head is linear: the mean of a group's tokens gives the mean of their logits.
            tokens = jnp.concatenate([decoded, foretold, aim], axis=-1)
            pairs = self.morphing.pairs(key, tokens, encodings, **given)
        found = []
        for tokens, encodings in pairs:
            decoded, foretold, aim = jnp.split(tokens, 3, axis=-1)
            codes = self.target.codes(encodings, variables=variables)
            logits = self._head().apply({'params': params['head']}, decoded)
            found.append((*recognition(logits, codes), ((foretold - aim) ** 2).mean()))
        entropy, hits, alignment = (jnp.stack(values).mean() for values in zip(*found, strict=True))
        metrics = {'code_loss': entropy, 'alignment_loss': alignment, 'accuracy': hits}
        return entropy + self.alignment_weight * alignment, metrics, {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        mask = self.mask(variables, batch, step)
        visible, hidden = self.places(mask)
        seen, foretold, aim = self.latents(variables['params'], batch, visible, hidden)
        whole = functools.partial(in_places, visible_ids=visible, hidden_ids=hidden)
        errors = whole(jnp.zeros_like(seen), (foretold - aim) ** 2).mean(axis=-1)
        latents = [
            panels.Tokens(whole(seen, aim), title='each half, seen alone (PCA)'),
            panels.Tokens(whole(seen, foretold), title='hidden ones foretold (PCA)'),
            panels.HeatMap(errors, title='distance'),
        ]
        encodings, given = self.grouped(variables, batch)
        where = {'places': hidden, 'num_tokens': self.num_patches}
        groups = self.morphing.panels(encodings, **given, **where)
        sheets = {'latents': latents, 'groups': groups}
        return {name: [panels.Mask(mask), *sheet] for name, sheet in sheets.items() if sheet}

    def _regressor(self) -> LatentRegressor:
        return LatentRegressor(self.encoder, self.grid, self.regressor_depth)

    def _decoder(self) -> PlacedBlocks:
        return PlacedBlocks(self.encoder, self.grid, self.decoder_depth)

    def _head(self) -> TokenHead:
        return TokenHead(self.target.num_codes, self.encoder.initialization, self.encoder.dtype)
