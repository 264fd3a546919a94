"""VQ-KD, the tokenizer of BEiT v2 (Peng et al., arXiv 2208.06366).

An encoder's tokens are quantised to the codes of a codebook, from which a small decoder must
restore the features of a frozen teacher. The codes then are the visual tokens that BEiT v2
predicts.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import keys, panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import cosine_distance
from mim_jax.models.heads import MLPHead
from mim_jax.models.quantizer import Quantizer, nearest_code
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.targeted import Targeted
from mim_jax.panels import Sheets
from mim_jax.ranges import NotNegative
from mim_jax.targets import TARGETS
from mim_jax.targets.tokenizer import code_head, encode


@dataclasses.dataclass(frozen=True)
class VQKD(Targeted):
    """The defaults are those of the released code.

    target: what the decoder restores, by cosine at every patch.
    quantizer: the codebook, which follows averages and not the gradient.
    decoder: a ViT whose image is the grid of codes; its patches are single codes.
    commitment: weight of the mean squared distance between encodings and their codes.
    """

    target: Any = choice(TARGETS, 'teacher')
    quantizer: Quantizer = Quantizer()
    decoder: ViT = ViT(
        patch_size=(1, 1), width=768, depth=3, heads=12, position='learned', initialization='beit'
    )
    commitment: NotNegative = 1.0

    needs_whole_batch = True  # codes follow the averages of the whole batch

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        if tuple(self.decoder.patch_size) != (1, 1):
            raise UserError(
                f'config.objective.decoder.patch_size = {tuple(self.decoder.patch_size)}: the '
                "decoder's image is the grid of codes, so that it must be (1, 1)."
            )
        return super().bind(encoder, inputs, clock)

    def init(self, key: jax.Array, images: Any) -> Variables:
        book = self.quantizer.init(keys.named(key, 'codes'))
        return {**super().init(key, images), 'state': {'codebook': book}}

    def init_predictor(self, key: jax.Array, features: int) -> Variables:
        def named(name: str) -> jax.Array:
            return keys.named(key, name)

        width = self.quantizer.width
        head, predictor = code_head(self.encoder, width), self._predictor(features)
        tokens = jnp.zeros((1, 1, self.encoder.width))
        codes = jnp.zeros((1, *self.grid, width))
        decoded = jnp.zeros((1, 1, self.decoder.width))
        return {
            'code': head.init(named('code'), tokens)['params'],
            'decoder': self.decoder.init(named('decoder'), codes)['params'],
            'predict': predictor.init(named('predict'), decoded)['params'],
        }

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        params, images = variables['params'], batch['images']
        encoded = self.encode(params, images, keys=keys.named(batch['keys'], 'drop_path'))
        encodings = encode(params, encoded.tokens, model=self.encoder)
        still = jax.lax.stop_gradient(encodings)
        flat = still.reshape(-1, self.quantizer.width)
        book = self.quantizer.prepare(
            variables['state']['codebook'], flat, key=keys.named(key, 'codes')
        )
        ids = nearest_code(still, book['codes'])
        codes = book['codes'][ids]
        commitment = ((encodings - codes) ** 2).mean()
        # Straight through: the value is the code's, the gradient the encoding's.
        restored = self.decode(params, encodings + jax.lax.stop_gradient(codes - encodings))
        target = self.targets(variables, images)
        distance = cosine_distance(restored, target).mean()
        used = jnp.zeros(self.quantizer.num_codes).at[ids.reshape(-1)].max(1.0).mean()
        metrics = {'restoration': distance, 'commitment': commitment, 'codes_used': used}
        state = {'codebook': self.quantizer.update(book, flat, ids.reshape(-1))}
        return distance + self.commitment * commitment, metrics, state

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        params, images = variables['params'], batch['images']
        tokens = self.encode(params, images).tokens
        codes = variables['state']['codebook']['codes']
        ids = nearest_code(encode(params, tokens, model=self.encoder), codes)
        target = panels.Tokens(self.targets(variables, images), title='target (PCA)')
        restored = panels.Tokens(
            self.decode(params, codes[ids]), title='restored from codes (its own PCA)'
        )
        return {'codes': [panels.Groups(ids, title='patches of a code'), target, restored]}

    def decode(self, params: Any, codes: jax.Array) -> jax.Array:
        """Restored features float32 [B,N,D] from codes [B,N,d]."""
        images = codes.reshape(codes.shape[0], *self.grid, codes.shape[-1])
        tokens = self.decoder.apply({'params': params['decoder']}, images).tokens
        head = self._predictor(params['predict']['fc2']['bias'].shape[-1])
        return head.apply({'params': params['predict']}, tokens)

    def _predictor(self, features: int) -> MLPHead:
        return MLPHead(
            self.decoder.width,
            features,
            activation='tanh',
            initialization=self.decoder.initialization,
            dtype=self.decoder.dtype,
        )
