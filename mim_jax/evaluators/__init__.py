"""Evaluators: what a frozen encoder's features are worth.

An evaluator is a frozen dataclass whose fields are its config section. It takes a feature function
and labelled batches, and yields (name, value). It knows no model and no objective.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol

import jax
import numpy as np

from mim_jax.errors import UserError
from mim_jax.evaluators.knn import KNN
from mim_jax.evaluators.subset import EvenlySpaced

FeatureFn = Callable[[np.ndarray], jax.Array | np.ndarray]
Batches = Iterable[Mapping[str, Any]]


class Evaluator(Protocol):
    """The protocol.

    `run` takes
      feature_fn: images uint8 [b,H,W,C] (this process's rows) -> features float32 [b,D], or the
        global array of all processes' rows of which exactly those are addressable here;
      train_batches, test_batches: dicts with 'images' uint8 [b,H,W,C], 'labels' int32 [b] and
        optionally 'valid' bool [b], False for padding; each process brings its own share, in
        equally many batches;
      num_classes: labels are 0..num_classes-1;
    and yields the same names and values on every process.
    """

    pool: str

    def run(
        self,
        feature_fn: FeatureFn,
        train_batches: Batches,
        test_batches: Batches,
        *,
        num_classes: int,
    ) -> Iterator[tuple[str, float]]: ...


def pool_tokens(encoded: Any, *, pool: str) -> jax.Array:
    """One float32 [B,D] feature per image from an `Encoded`: the mean of the patch tokens ('mean')
    or the class token ('class').

    Raises UserError where the encoder has no class token.
    """
    if pool == 'mean':
        return encoded.tokens.astype(np.float32).mean(axis=1)
    if encoded.class_token is None:
        raise UserError(
            "The evaluator's pool is 'class', but the encoder has no class token: "
            "set pool = 'mean', or model.class_token = True."
        )
    return encoded.class_token.astype(np.float32)


__all__ = ['EVALUATORS', 'KNN', 'Evaluator', 'EvenlySpaced', 'pool_tokens']

EVALUATORS: dict[str, type] = {'knn': KNN}
