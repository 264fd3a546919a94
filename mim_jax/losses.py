"""Distances between tokens, and their reductions; all in float32."""

import dataclasses
from typing import Literal

import flax.struct
import jax
import jax.numpy as jnp
import optax

from mim_jax.frequencies import spectrum
from mim_jax.ranges import Positive, Side

NORM_EPS = 1e-12
# Added to |z|^2 before the root, which has no gradient at 0 (as the released code of MFM).
SQUARE_EPS = 1e-12


def cosine_distance(prediction, target):
    """1 - cosine of the last axes: [...,D], [...,D] to [...]. A zero vector has cosine 0."""
    return 1.0 - jnp.sum(unit(prediction) * unit(target), axis=-1)


def unit(x):
    """x [...,D] divided by its Euclidean norm, float32; one shorter than 1e-12 stays as it is.

    Dividing those by the bound instead, as is common, would give them gradients of order 1e12.
    """
    x = x.astype(jnp.float32)
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    return x / jnp.sqrt(jnp.where(squares > NORM_EPS**2, squares, 1.0))


def smooth_l1(difference, *, beta):
    """Element-wise x^2 / (2 beta) where |x| < beta, |x| - beta/2 elsewhere."""
    size = jnp.abs(difference)
    return jnp.where(size < beta, 0.5 * difference**2 / beta, size - 0.5 * beta)


class Distance:
    """Of every token: prediction and target [...,D] to float32 [...]. A choice of a config."""

    def __call__(self, prediction, target):
        return self.between(prediction.astype(jnp.float32), target.astype(jnp.float32))


@dataclasses.dataclass(frozen=True)
class Cosine(Distance):
    """1 - cosine; a zero vector has cosine 0."""

    def between(self, prediction, target):
        return cosine_distance(prediction, target)


@dataclasses.dataclass(frozen=True)
class L1(Distance):
    """Mean of the absolute differences."""

    def between(self, prediction, target):
        return jnp.abs(prediction - target).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class L2(Distance):
    """Mean of the squared differences."""

    def between(self, prediction, target):
        return ((prediction - target) ** 2).mean(axis=-1)


@dataclasses.dataclass(frozen=True)
class SmoothL1(Distance):
    """Mean of `smooth_l1`; beta is where the square turns into the line (2 in DTM's code)."""

    beta: Positive = 2.0

    def between(self, prediction, target):
        return smooth_l1(prediction - target, beta=self.beta).mean(axis=-1)


DISTANCES = {'cosine': Cosine, 'l1': L1, 'l2': L2, 'smooth_l1': SmoothL1}


@flax.struct.dataclass
class Weighted:
    """A loss that is a mean over a count which differs from batch to batch: its sum and its count,
    float32 scalars. Microbatches and shards then add up to the mean over the whole batch.
    """

    sum: jax.Array
    weight: jax.Array

    @property
    def mean(self) -> jax.Array:
        """sum / weight; 0 where nothing counts."""
        return self.sum / jnp.where(self.weight > 0, self.weight, 1.0)


def masked_mean(values, mask):
    """Mean of values [B,N] where mask [B,N] is True; 0 if nowhere. Float32 scalar."""
    weights = mask.astype(jnp.float32)
    return jnp.sum(values.astype(jnp.float32) * weights) / jnp.maximum(jnp.sum(weights), 1.0)


def border_square(prediction, target, *, borders):
    """How far two pictures [B,H,W,C] are apart along their edges, float32 [B]: the sum of the mean
    squared differences in four strips, `borders` (rows, columns) wide. The upper and the lower one
    have the corners.

    Source: Beyond Masking (Tian et al., 2022), its released code.
    """
    squares = (prediction.astype(jnp.float32) - target.astype(jnp.float32)) ** 2
    rows, columns = borders
    middle = squares[:, rows:-rows]
    strips = squares[:, :rows], squares[:, -rows:], middle[:, :, :columns], middle[:, :, -columns:]
    return sum(strip.mean(axis=(1, 2, 3)) for strip in strips)


def ranking_loss(scores, values, *, eps=1e-6):
    """How badly scores [B,K] rank the values [B,K], float32 [B].

    For one image the mean over ordered pairs (i, j) with values_i != values_j of
    -log(p_ij + eps) where values_i > values_j and -log(1 - p_ij + eps) where values_i < values_j,
    p_ij = sigmoid(scores_i - scores_j); 0 where all values are equal.

    Source: HPM (Wang et al., CVPR 2023), the relative loss, eps as in its released code, where the
    mean is over the pairs of the batch: the same wherever no two values of an image are equal.
    """
    scores, values = scores.astype(jnp.float32), values.astype(jnp.float32)
    # 1 - p_ij = p_ji, so that (i, j) and (j, i) give the same: those with i above j are enough.
    above = (values[:, :, None] > values[:, None, :]).astype(jnp.float32)
    likely = jax.nn.sigmoid(scores[:, :, None] - scores[:, None, :])
    total = -jnp.sum(above * jnp.log(likely + eps), axis=(1, 2))
    return total / jnp.maximum(above.sum(axis=(1, 2)), 1.0)


def divergence(target, scores):
    """KL divergence of softmax(scores [...,K]) from the distribution target [...,K], float32
    [...].
    """
    target = target.astype(jnp.float32)
    log_chances = jax.nn.log_softmax(scores.astype(jnp.float32), axis=-1)
    return (jax.scipy.special.xlogy(target, target) - target * log_chances).sum(axis=-1)


@dataclasses.dataclass(frozen=True)
class TokenContrast:
    """How badly the tokens of an image are told from each other: cross-entropy of every token's own
    target among the targets of all its tokens, by cosine.

    temperature: by which cosines are divided.

    Source: the denoising contrast of ConMIM (Yi et al., ICLR 2023).
    """

    temperature: Positive = 0.1

    def __call__(self, prediction, target):
        """Prediction and target [...,N,D] to float32 [...,N]."""
        logits = self.logits(prediction, target)
        own = jnp.diagonal(logits, axis1=-2, axis2=-1)
        return jax.nn.logsumexp(logits, axis=-1) - own

    def logits(self, prediction, target):
        """Of every prediction (rows) with every target of its image (columns), float32 [...,N,N].

        In full precision: a temperature makes errors of cosines large.
        """
        cosines = jnp.einsum(
            '...nd,...md->...nm',
            unit(prediction),
            unit(target),
            precision=jax.lax.Precision.HIGHEST,
        )
        return cosines / self.temperature


def recognition(logits, classes):
    """How well logits [...,K] tell the right one of K classes, `classes` [...] int32: the mean of
    the cross-entropy, and the share in which the right one is the first choice; float32 scalars.
    """
    entropy = optax.softmax_cross_entropy_with_integer_labels(logits, classes)
    return entropy.mean(), (logits.argmax(axis=-1) == classes).astype(jnp.float32).mean()


def token_similarity(tokens):
    """Mean cosine of two tokens of an image, of itself too, over all pairs of tokens [B,N,D];
    float32 scalar.
    """
    return jnp.mean(jnp.sum(unit(tokens).mean(axis=1) ** 2, axis=-1))


def standardize_tokens(target, *, eps=1e-6, ddof=0):
    """Tokens [...,D], float32, each with mean 0 and variance 1 (LayerNorm without affine).

    ddof: the variance is the sum of squares divided by D - ddof; 1 is the unbiased one.
    """
    target = target.astype(jnp.float32)
    mean = target.mean(axis=-1, keepdims=True)
    return (target - mean) / jnp.sqrt(target.var(axis=-1, keepdims=True, ddof=ddof) + eps)


def standardize_channels(tokens, *, eps=1e-4):
    """Tokens [B,N,D], float32, every channel with mean 0 and deviation 1 over the tokens of an
    image: divided by the unbiased deviation plus `eps`.

    Source: the predictions of Latent MIM (Wei et al., ECCV 2024), the released code.
    """
    centred = tokens - tokens.mean(axis=1, keepdims=True)
    variance = tokens.var(axis=1, keepdims=True, ddof=1)
    # The bound lets tokens that are all the same, as morphing may leave them, have a gradient.
    return centred / (jnp.sqrt(jnp.maximum(variance, 1e-12)) + eps)


def standardized_square(scores, values):
    """(scores - values)^2, float32 [B,K], the values [B,K] of every image brought to mean 0 and
    unbiased variance 1 with the eps of normalised pixels.

    Source: HPM's released code, the loss predictor that learns the losses themselves.
    """
    return (scores.astype(jnp.float32) - standardize_tokens(values, ddof=1)) ** 2


@dataclasses.dataclass(frozen=True)
class SpectrumDistance:
    """Distance |P - T|^gamma of the spectra of two images at every frequency.

    gamma: exponent of the distance.
    focal: weighs every frequency by its own distance to this power, divided by the largest
      (constant for the gradient), so that the hard ones count most; None: all count alike.
    focal_log: the logarithm of 1 + that power instead.
    focal_over: the largest is that of each image and channel, or that of the whole batch.
    average: the spectra of the batch are averaged first, and compared as one.
    parts: the image is cut into so many parts per side, each with a spectrum of its own.

    Source: MFM (Xie et al., ICLR 2023) and its released code; the weights are those of the focal
    frequency loss (Jiang et al., ICCV 2021).
    """

    gamma: Positive = 1.0
    focal: Positive | None = None
    focal_log: bool = False
    focal_over: Literal['image', 'batch'] = 'image'
    average: bool = False
    parts: Side = 1

    @property
    def over_batch(self) -> bool:
        """Whether the distance of an image depends on the others of its batch."""
        return self.average or (self.focal is not None and self.focal_over == 'batch')

    def __call__(self, prediction, target):
        """Images [B,H,W,C] to float32 [B,P,h,w,C] for P = parts^2 parts of (h, w); with `average`
        B is 1.
        """
        spectra = [spectrum(cut(x.astype(jnp.float32), self.parts)) for x in (prediction, target)]
        if self.average:
            spectra = [s.mean(axis=0, keepdims=True) for s in spectra]
        difference = spectra[0] - spectra[1]
        squares = difference.real**2 + difference.imag**2
        distances = jnp.sqrt(squares + SQUARE_EPS) ** self.gamma
        return distances if self.focal is None else distances * self._focus(squares)

    def _focus(self, squares):
        """Weights in [0, 1] of all frequencies."""
        weights = jnp.sqrt(jax.lax.stop_gradient(squares)) ** self.focal
        if self.focal_log:
            weights = jnp.log1p(weights)
        axes = (2, 3) if self.focal_over == 'image' else None
        largest = weights.max(axis=axes, keepdims=True)
        return jnp.where(largest > 0, weights / jnp.where(largest > 0, largest, 1.0), 0.0)


def cut(images, parts):
    """Images [B,H,W,C] as `parts` by `parts` pieces each, [B,parts^2,H/parts,W/parts,C]."""
    batch, height, width, channels = images.shape
    pieces = images.reshape(batch, parts, height // parts, parts, width // parts, channels)
    return pieces.swapaxes(2, 3).reshape(batch, parts**2, height // parts, width // parts, channels)
