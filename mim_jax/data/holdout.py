"""Which images are held out for evaluation where a set has no evaluation images of its own."""

import hashlib
import os

import numpy as np


def held_out(names: list[str], labels: np.ndarray, *, share: float, seed: int) -> np.ndarray:
    """bool [N], True for about `share` of the images of every class.

    Whether an image is one of them is told by its path below the folder, class included, and the
    seed alone, so that adding others moves none. In classes so small that this would take all
    images, or none, one stays for training and then, if there are two, one is held out: those whose
    numbers are the highest and the lowest. There an added image may take another's place.

    labels: int [N].
    """
    numbers = np.array([_number(name, seed) for name in names])
    held = numbers < share
    order = np.lexsort((numbers, labels))
    for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
        if len(members) > 1:
            held[members[0]] = share > 0
        held[members[-1:]] = False
    return held


def _number(name: str, seed: int) -> float:
    """A number in [0, 1), even over all names."""
    key = seed.to_bytes(8, 'little')
    digest = hashlib.blake2b(os.fsencode(name), digest_size=6, key=key).digest()
    return int.from_bytes(digest, 'little') / 2**48
