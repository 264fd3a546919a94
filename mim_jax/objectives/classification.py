"""Supervised classification: training from scratch, fine-tuning, and probing a frozen encoder."""

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
from mim_jax.models.vit import Encoded, ViT
from mim_jax.objectives.base import Batch, Objective, Variables


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Softmax cross-entropy on pooled features.

    pooling: the mean of the patch tokens, the class token, or one vector of both by attention
      (`models.AttentivePool`, with the encoder's heads).
    pool_norm: a LayerNorm after pooling; the encoder then needs no final norm.
    batch_norm: a batch norm without parameters before the linear layer, as probes have it. Its
      running averages are `state`; accumulation is refused.
    head_scale: factor on the head's initial kernel.
    label_smoothing: share of the target spread over all classes.
    """

    pooling: Literal['mean', 'class_token', 'attentive'] = 'mean'
    pool_norm: bool = True
    batch_norm: bool = False
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
        head = self._head().init(keys.named(key, 'head'), encoded)
        variables = {'params': {'encoder': encoder, 'head': head['params']}}
        return variables | ({'state': head['batch_stats']} if self.batch_norm else {})

    @property
    def needs_whole_batch(self) -> bool:
        return self.batch_norm

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        params = variables['params']
        drop_path_keys = keys.named(batch['keys'], 'drop_path')
        encoded = self.encode(params, batch['images'], keys=drop_path_keys)
        logits, state = self._classified(variables, encoded, train=True)
        labels = jax.nn.one_hot(batch['labels'], logits.shape[-1])
        labels = optax.smooth_labels(labels, self.label_smoothing)
        loss = optax.softmax_cross_entropy(logits, labels).mean()
        top1 = (logits.argmax(axis=-1) == batch['labels']).astype(jnp.float32).mean()
        return loss, {'top1': top1}, state

    def logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Scores of the classes for whole images [B,H,W,C] in [0, 1], float32 [B,classes]."""
        return self._classified(variables, self.features(variables, images), train=False)[0]

    def _classified(
        self, variables: Variables, encoded: Encoded, *, train: bool
    ) -> tuple[jax.Array, Any]:
        """(logits, the new `state`)."""
        head = {'params': variables['params']['head']}
        if not self.batch_norm:
            return self._head().apply(head, encoded), {}
        head['batch_stats'] = variables['state']
        logits, new = self._head().apply(head, encoded, train=train, mutable=['batch_stats'])
        return logits, new['batch_stats']

    def _head(self) -> PooledClassifier:
        return PooledClassifier(
            self.inputs.num_classes,
            pooling=self.pooling,
            norm=self.pool_norm,
            norm_eps=self.encoder.norm_eps,
            init_scale=self.head_scale,
            batch_norm=self.batch_norm,
            heads=self.encoder.heads,
            dtype=self.encoder.dtype,
        )
