"""Supervised classification: training from scratch, fine-tuning, and probing a frozen encoder."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mim_jax import keys
from mim_jax.clock import Clock
from mim_jax.data.erasing import erase
from mim_jax.data.mixing import mix
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models.heads import PooledClassifier
from mim_jax.models.vit import Encoded, ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.ranges import Fraction, NotNegative, Share


@dataclasses.dataclass(frozen=True)
class Classification(Objective):
    """Softmax cross-entropy on pooled features, of images that may be erased and mixed.

    In training a box of an image may become noise (data/erasing.py), then images and targets may be
    mixed in pairs (data/mixing.py), as in timm. The metric `top1` is the share of images whose
    highest score is that of the class with the largest part in the image's target: its own without
    mixing.

    pooling: the mean of the patch tokens, the class token, or one vector of both by attention
      (`models.AttentivePool`, with the encoder's heads).
    pool_norm: a LayerNorm after pooling; the encoder then needs no final norm.
    batch_norm: a batch norm without parameters before the linear layer, as probes have it. Its
      running averages are `state`; accumulation is refused.
    head_scale: factor on the head's initial kernel.
    label_smoothing: share of the target spread over all classes, of both images of a pair.
    erasing: probability with which a box of an image is erased.
    mixup, cutmix: parameter of the Beta distribution of a pair's shares; 0: not this one. switch:
      probability of CutMix where both are given.
    mix_per: a 'batch' draws once for all its pairs (timm's default, and BEiT's), or each 'image'.
    """

    pooling: Literal['mean', 'class_token', 'attentive'] = 'mean'
    pool_norm: bool = True
    batch_norm: bool = False
    head_scale: NotNegative = 0.001
    label_smoothing: Fraction = 0.0
    erasing: Share = 0.0
    mixup: NotNegative = 0.0
    cutmix: NotNegative = 0.0
    switch: Share = 0.5
    mix_per: Literal['batch', 'image'] = 'batch'

    @property
    def batch_parts(self) -> int:
        """Images are mixed in pairs."""
        return 2 if self.mixup or self.cutmix else 1

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
        return variables | ({'state': head['state']} if self.batch_norm else {})

    @property
    def needs_whole_batch(self) -> bool:
        return self.batch_norm

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        params = variables['params']
        images, targets = self.augmented(batch, key)
        images = self.given(variables, images, batch['keys'])
        drop_path_keys = keys.named(batch['keys'], 'drop_path')
        encoded = self.encode(params, images, keys=drop_path_keys)
        logits, state = self._classified(variables, encoded, train=True)
        loss = optax.softmax_cross_entropy(logits, targets).mean()
        top1 = (logits.argmax(axis=-1) == targets.argmax(axis=-1)).astype(jnp.float32).mean()
        return loss, {'top1': top1}, state

    def augmented(self, batch: Batch, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B,H,W,C], erased and mixed, and their targets [B,classes], which sum to one."""
        targets = jax.nn.one_hot(batch['labels'], self.inputs.num_classes)
        targets = optax.smooth_labels(targets, self.label_smoothing)
        images = erase(
            batch['keys'],
            batch['images'],
            probability=self.erasing,
            mean=self.inputs.mean,
            std=self.inputs.std,
        )
        # Before normalisation, which comes to the same: it is linear, and a pair's shares sum to 1.
        return mix(
            keys.named(batch['keys'], 'mix'),
            images,
            targets,
            mixup=self.mixup,
            cutmix=self.cutmix,
            switch=self.switch,
            shared=keys.named(key, 'mix') if self.mix_per == 'batch' else None,
        )

    def given(self, variables: Variables, images: jax.Array, own: jax.Array) -> jax.Array:
        """What the encoder is given of augmented images [B,H,W,C]; own: typed keys [B]."""
        return images

    def logits(
        self, variables: Variables, images: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Scores of the classes for whole images [B,H,W,C] in [0, 1], float32 [B,classes].

        key: for what a defence draws; None: the same draws every time.
        """
        return self._classified(variables, self.features(variables, images), train=False)[0]

    def _classified(
        self, variables: Variables, encoded: Encoded, *, train: bool
    ) -> tuple[jax.Array, Any]:
        """(logits, the new `state`)."""
        head = {'params': variables['params']['head']}
        if not self.batch_norm:
            return self._head().apply(head, encoded), {}
        head['state'] = variables['state']
        if not train:
            return self._head().apply(head, encoded, train=False), variables['state']
        logits, new = self._head().apply(head, encoded, train=True, mutable=['state'])
        return logits, new['state']

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
