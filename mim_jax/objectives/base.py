"""The contract of an objective: what trainer, evaluators and pictures ask of a method."""

import dataclasses
import re
from typing import Any

import jax
import numpy as np

from mim_jax.config import context
from mim_jax.data import DataConfig, View
from mim_jax.inputs import Inputs
from mim_jax.models.patches import patch_grid
from mim_jax.models.vit import Encoded, ViT
from mim_jax.sharding import path_name

Variables = dict[str, Any]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method. Its dataclass fields are its config section; `bind` adds the encoder and the
    inputs.

    All functions are pure and can be jitted. `variables` holds collections: `params` (trained) and,
    where the method has them, `teacher` (frozen), `ema` (average of `params`), `state`.
    """

    encoder: ViT = context()
    inputs: Inputs = context()

    def bind(self, encoder: ViT, inputs: Inputs) -> 'Objective':
        """This objective for an encoder and inputs; raises UserError where they do not fit."""
        return dataclasses.replace(self, encoder=encoder, inputs=inputs)

    @property
    def grid(self) -> tuple[int, int]:
        """Patches per (column, row) of the student's images."""
        return patch_grid(self.inputs.image_size, self.encoder.patch_size)

    @property
    def needs_ema(self) -> bool:
        """Whether the method reads `variables['ema']`."""
        return False

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of a batch is not the mean of the losses of its parts."""
        return False

    def views(self, data: DataConfig) -> dict[str, View]:
        """What the method sees of an item: the batch's images by name, `images` among them; made by
        `data.view(**changes)`.
        """
        return {'images': data.view()}

    def init(self, key: jax.Array, images: Any) -> Variables:
        """Fresh variables for images of the shape of `images` [B,H,W,C] (values unused)."""
        raise NotImplementedError

    def pretrained(self) -> Variables:
        """Collections read from files (host arrays), which replace those of `init`."""
        return {}

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], Any]:
        """Scalar float32 loss, scalar metrics, and the new `state` collection ({} if none).

        `batch` has `images` float32 [B,H,W,C] in [0, 1], `keys` [B] for all that is drawn per
        image, and `labels` int32 [B] if known; `key` is for draws shared by the whole batch.
        """
        raise NotImplementedError

    def features(self, variables: Variables, images: jax.Array) -> Encoded:
        """What the encoder makes of whole images [B,H,W,C] in [0, 1]."""
        return self.encoder.apply(
            {'params': variables['params']['encoder']}, self.inputs.normalize(images)
        )

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, Any]:
        """What there is to see of a batch, any of: `mask` bool [B,N], True = hidden;
        `reconstruction` [B,H,W,C] in [0, 1]; `groups` int32 [S,B,N], the groups of tokens under S
        schedules, which the texts `group_titles` name. Can be jitted but for the texts.
        """
        return {}

    def weight_decayed(self, params: Any) -> Any:
        """Tree of bool over `params`: biases, scales, tokens and tables are not decayed."""

        def decayed(path: tuple, leaf: Any) -> bool:
            name = path_name(path)
            stacked = re.search(r'(^|/)blocks/', name) is not None
            return leaf.ndim - stacked > 1 and not re.search(NO_DECAY, name)

        return jax.tree_util.tree_map_with_path(decayed, params)

    def layers(self, params: Any) -> Any:
        """Tree over `params` of layer ids for layer-wise decay: 0 the embedding, 1 to depth the
        encoder's blocks (an array for stacked ones), depth + 1 everything after them.
        """
        depth = self.encoder.depth

        def layer(path: tuple, leaf: Any) -> Any:
            name = path_name(path)
            if name.startswith('encoder/blocks/'):
                return np.arange(1, depth + 1)
            if re.match(r'encoder/(?!final_norm)', name):
                return 0
            return depth + 1

        return jax.tree_util.tree_map_with_path(layer, params)


NO_DECAY = r'(bias|scale|class_token|mask_token|registers|position)'
