"""Evaluators: what a frozen encoder's features are worth.

An evaluator is a frozen dataclass whose fields are its config section. It takes the features of the
training and the test images, and yields (name, value). It knows no model and no objective.
"""

from mim_jax.evaluators.base import Evaluator, Test
from mim_jax.evaluators.features import (
    POOLINGS,
    Features,
    Pool,
    collect,
    gather,
    pool_tokens,
    pooled,
)
from mim_jax.evaluators.fewshot import FewShot
from mim_jax.evaluators.health import Health
from mim_jax.evaluators.knn import KNN
from mim_jax.evaluators.linear import Linear
from mim_jax.evaluators.subset import EvenlySpaced

__all__ = [
    'EVALUATORS',
    'KNN',
    'POOLINGS',
    'Evaluator',
    'EvenlySpaced',
    'Features',
    'FewShot',
    'Health',
    'Linear',
    'Pool',
    'Test',
    'collect',
    'gather',
    'pool_tokens',
    'pooled',
]

EVALUATORS: dict[str, type[Evaluator]] = {
    'knn': KNN,
    'fewshot': FewShot,
    'linear': Linear,
    'health': Health,
}
