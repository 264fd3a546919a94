"""Semantic segmentation: a class for every pixel, by fine-tuning or on a frozen encoder."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from mim_jax import keys as named_keys
from mim_jax import panels
from mim_jax.clock import Clock
from mim_jax.config import choice
from mim_jax.data import DataConfig, PhotometricDistortion, View, find
from mim_jax.data.fields import UNLABELLED
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import Weighted
from mim_jax.models.resizing import bilinear
from mim_jax.models.segmenters import SEGMENTERS
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.panels import Sheets


@dataclasses.dataclass(frozen=True)
class Segmentation(Objective):
    """Softmax cross-entropy of every pixel, on logits brought to the image's size.

    map: the field of the data that holds the classes; pixels of 255 have none.
    head: 'upernet', with BEiT's pyramid and an auxiliary head, or 'linear'.
    mean_over: the loss is summed over the pixels that have a class and divided by their number, or
      by that of all pixels, as in the versions of mmseg that BEiT's code was written for.
    distortion: of colours, on the host, beside those of `data.colors`.
    """

    map: str = 'map'
    head: Any = choice(SEGMENTERS, 'upernet')
    mean_over: Literal['labelled', 'all'] = 'labelled'
    distortion: PhotometricDistortion = PhotometricDistortion(probability=0.0)

    @property
    def needs_whole_batch(self) -> bool:
        return self.head.has_state  # batch norm takes its statistics from it

    @property
    def num_classes(self) -> int:
        """Classes are 0..num_classes-1."""
        return find(self.inputs.fields, self.map).num_classes

    def views(self, data: DataConfig) -> dict[str, View]:
        transforms = (self.distortion,) if self.distortion.probability else ()
        return {'images': data.view(maps=(self.map,), transforms=transforms)}

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        field = find(inputs.fields, self.map)
        # Data without the map is reported with the views, which need it.
        if field is not None and field.kind == 'map':
            _check_classes(field)
        beyond = [block for block in self.head.taps(encoder.depth) if block > encoder.depth]
        if beyond:
            raise UserError(
                f'config.objective.head.blocks names the block {beyond[0]}, but config.model.depth '
                f'= {encoder.depth}.'
            )
        return super().bind(encoder, inputs, clock)

    def init(self, key: jax.Array, images: Any) -> Variables:
        encoder = self.encoder.init(named_keys.named(key, 'encoder'), images)['params']
        head = self.head.init(
            named_keys.named(key, 'head'),
            width=self.encoder.width,
            depth=self.encoder.depth,
            grid=self.grid,
            **self._options,
        )
        variables = {'params': {'encoder': encoder, 'head': head['params']}}
        return variables | ({'state': {'head': head['state']}} if self.head.has_state else {})

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[Weighted, dict[str, jax.Array], Any]:
        labels = batch[f'images_{self.map}'].astype(jnp.int32)
        predicted, state = self.predict(variables, batch['images'], keys=batch['keys'])
        logits = [(weight, bilinear(x, labels.shape[1:])) for weight, x in predicted]
        labelled = labels != UNLABELLED
        known = jnp.where(labelled, labels, 0)
        entropy = optax.softmax_cross_entropy_with_integer_labels
        losses = sum(weight * entropy(x, known) for weight, x in logits)
        right = labelled & (logits[0][1].argmax(axis=-1) == labels)
        count = labelled.sum().astype(jnp.float32)
        accuracy = right.sum() / jnp.maximum(count, 1.0)
        weight = count if self.mean_over == 'labelled' else jnp.float32(labels.size)
        loss = Weighted(jnp.where(labelled, losses, 0.0).sum(), weight)
        return loss, {'pixel_accuracy': accuracy}, state

    def pixel_logits(self, variables: Variables, images: jax.Array) -> jax.Array:
        """Scores of the classes for every pixel of images [B,H,W,C] in [0, 1], float32
        [B,H,W,classes], by running averages.
        """
        predicted, _ = self.predict(variables, images)
        return bilinear(predicted[0][1], images.shape[1:3])

    def predict(
        self, variables: Variables, images: jax.Array, keys: jax.Array | None = None
    ) -> tuple[list[tuple[float, jax.Array]], Any]:
        """The head's (weight in the loss, logits) at sizes of its own, and the new `state`.

        keys: typed keys [B] of a training step; None: evaluation.
        """
        params = variables['params']
        drop_path = named_keys.named(keys, 'drop_path')
        blocks = self.head.taps(self.encoder.depth)
        encoded = self.encode(params, images, keys=drop_path, layers=blocks)
        tokens = [encoded.layers[block].tokens for block in blocks] or [encoded.tokens]
        maps = [x.reshape(len(x), *self.grid, x.shape[-1]) for x in tokens]
        head = {'params': params['head']}
        if self.head.has_state:
            head['state'] = variables['state']['head']
        logits, state = self.head.apply(head, maps, keys=keys, **self._options)
        return logits, {'head': state} if self.head.has_state else {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        logits = self.pixel_logits(variables, batch['images'])
        truth = panels.Classes(batch[f'images_{self.map}'].astype(jnp.int32), title='truth')
        found = panels.Classes(logits.argmax(axis=-1).astype(jnp.int32), title='prediction')
        return {'segmentation': [truth, found]}

    @property
    def _options(self) -> dict[str, Any]:
        return {'classes': self.num_classes, 'dtype': self.encoder.dtype}


def _check_classes(field: Any) -> None:
    """Raises UserError for a map that is not one of up to 255 classes."""
    if field.num_classes is None:
        raise UserError(
            f'config.objective.map = {field.name!r}: the data does not say how many classes this '
            'map has; set config.data.source.map_classes.'
        )
    if field.num_classes > UNLABELLED:
        raise UserError(
            f'config.objective.map = {field.name!r} has {field.num_classes} classes; at most '
            f'{UNLABELLED} are possible, as {UNLABELLED} stands for no class.'
        )
