"""Supervised classification: training from scratch, and fine-tuning."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mim_jax import keys
from mim_jax.clock import Clock
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models.heads import PooledClassifier
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Softmax cross-entropy on pooled features.

    pooling: the mean of the patch tokens, or the class token.
    pool_norm: a LayerNorm after pooling; the encoder then needs no final norm.
    head_scale: factor on the head's initial kernel.
    label_smoothing: share of the target spread over all classes.
    """

    pooling: Literal['mean', 'class_token'] = 'mean'
    pool_norm: bool = True
    head_scale: float = 0.001
    label_smoothing: float = 0.0

    def __post_init__(self):
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f'label_smoothing = {self.label_smoothing} must lie in [0, 1).')

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        if self.pooling == 'class_token' and not encoder.class_token:
            raise UserError(
                "config.objective.pooling = 'class_token', but config.model.class_token = False; "
                'change one of them.'
            )
        return super().bind(encoder, inputs, clock)

    def init(self, key: jax.Array, images: Any) -> Variables:
        if not self.inputs.num_classes:
            raise UserError(
                'config.objective: classification needs labels, and this data source has none; '
                'use class sub-folders or a labelled data set.'
            )
        encoder = self.encoder.init(keys.named(key, 'encoder'), images)['params']
        images = jnp.zeros((1, *images.shape[1:]))
        encoded = jax.eval_shape(self.encoder.apply, {'params': encoder}, images)
        encoded = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), encoded)
        head = self._head().init(keys.named(key, 'head'), encoded)['params']
        return {'params': {'encoder': encoder, 'head': head}}

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        params = variables['params']
        drop_path_keys = keys.named(batch['keys'], 'drop_path')
        encoded = self.encode(params, batch['images'], keys=drop_path_keys)
        logits = self._head().apply({'params': params['head']}, encoded)
        labels = jax.nn.one_hot(batch['labels'], logits.shape[-1])
        labels = optax.smooth_labels(labels, self.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, labels).mean()
        top1 = (logits.argmax(axis=-1) == batch['labels']).astype(jnp.float32).mean()
        return loss, {'top1': top1}, {}

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Scores of the classes for whole images [B,H,W,C] in [0, 1], float32 [B,classes]."""
        encoded = self.features(variables, images)
        return self._head().apply({'params': variables['params']['head']}, encoded)

    def _head(self) -> PooledClassifier:
        return PooledClassifier(
            self.inputs.num_classes,
            pooling=self.pooling,
            norm=self.pool_norm,
            norm_eps=self.encoder.norm_eps,
            init_scale=self.head_scale,
            dtype=self.encoder.dtype,
        )
