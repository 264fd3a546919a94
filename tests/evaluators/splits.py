"""Features of made-up images, for the tests of evaluators."""

import numpy as np

from mim_jax.evaluators import Features


def make_split(seed, count, *, width=12, num_classes=4, noise=1.5):
    """Noisy class centres, the same ones for every seed; images 3, 4, 7, … of a larger set."""
    generator = np.random.default_rng(seed)
    centres = np.random.default_rng(7).normal(size=(num_classes, width))
    labels = generator.integers(num_classes, size=count).astype(np.int32)
    x = centres[labels] + noise * generator.normal(size=(count, width))
    numbers = np.cumsum(generator.integers(1, 4, size=count)).astype(np.int32)
    return Features(x.astype(np.float32), numbers, labels)


def share(features, *, index, count, stretch=7):
    """What process `index` of `count` has: every so many-th stretch of the images."""
    return features.select((np.arange(len(features.numbers)) // stretch) % count == index)
