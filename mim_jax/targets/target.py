"""What an objective may predict: one interface for pixels, HOG, a frozen network and an average."""

import dataclasses
from typing import Any

import jax

from mim_jax.inputs import Inputs
from mim_jax.losses import standardize_tokens
from mim_jax.models.vit import ViT
from mim_jax.targets.hog import HOG
from mim_jax.targets.network import Teacher, network_tokens
from mim_jax.targets.pixels import Pixels

Variables = dict[str, Any]


class Target:
    """The interface. A target is a frozen dataclass whose fields are its config section."""

    needs_ema = False

    def fresh(self, key: jax.Array, inputs: Inputs) -> Any:
        """Frozen parameters drawn at random, for shapes; {} if there are none. Traceable."""
        return {}

    def load(self, inputs: Inputs) -> Any:
        """Frozen parameters read from a file (host arrays); {} if there are none."""
        return {}

    def tokens(
        self, images: jax.Array, *, inputs: Inputs, encoder: ViT, variables: Variables
    ) -> jax.Array:
        """Targets [B,N,D] on the student's grid for images [B,H,W,C] in [0, 1]."""
        raise NotImplementedError


@dataclasses.dataclass(frozen=True)
class PixelTarget(Target, Pixels):
    """The student's normalised images, by patch."""

    def tokens(self, images, *, inputs, encoder, variables):
        return self(inputs.normalize(images), patch_size=encoder.patch_size)

    def picture(self, prediction, images, *, inputs, encoder):
        """Predictions [B,N,D] as images [B,H,W,C] in about [0, 1]."""
        like = inputs.normalize(images)
        shown = self.to_images(prediction, images=like, patch_size=encoder.patch_size)
        return inputs.denormalize(shown)


@dataclasses.dataclass(frozen=True)
class HOGTarget(Target, HOG):
    """Oriented gradients of the images as they are."""

    def tokens(self, images, *, inputs, encoder, variables):
        return self(images, patch_size=encoder.patch_size)


@dataclasses.dataclass(frozen=True)
class TeacherTarget(Target, Teacher):
    """Features of a frozen network, `variables['teacher']`."""

    def fresh(self, key, inputs):
        return self.init_random(key, image_shape=(*inputs.image_size, inputs.channels))

    def load(self, inputs):
        shape = (*inputs.image_size, inputs.channels)
        return self.init(image_shape=shape, where='objective.target')

    def tokens(self, images, *, inputs, encoder, variables):
        h, w = inputs.image_size
        p, q = encoder.patch_size
        return self(
            variables['teacher'],
            images,
            student_normalization=(inputs.mean, inputs.std),
            student_grid=(h // p, w // q),
        )


@dataclasses.dataclass(frozen=True)
class EMATarget(Target):
    """Features of the average of the student's encoder, `variables['ema']`, for whole images.

    layer: tokens after that many blocks; None: the encoder's output.
    standardize: each token to mean 0 and variance 1 (data2vec and its successors).
    """

    layer: int | None = None
    standardize: bool = True

    needs_ema = True

    def tokens(self, images, *, inputs, encoder, variables):
        tokens = network_tokens(
            variables['ema']['encoder'], inputs.normalize(images), model=encoder, layer=self.layer
        )
        return standardize_tokens(tokens) if self.standardize else tokens


TARGETS = {
    'pixels': PixelTarget,
    'hog': HOGTarget,
    'teacher': TeacherTarget,
    'ema': EMATarget,
}
