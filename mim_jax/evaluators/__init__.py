"""Evaluators: what a frozen encoder's features are worth.

An evaluator is a frozen dataclass whose fields are its config section. It takes the features of the
training and the test images, and yields (name, value). It knows no model and no objective. A judge
is an evaluator that is given the objective instead, and asks it for what it predicts.
"""

from mim_jax.evaluators.accuracy import Accuracy
from mim_jax.evaluators.adversarial import Adversarial
from mim_jax.evaluators.attentive import Attentive
from mim_jax.evaluators.augmented import Augmented
from mim_jax.evaluators.base import Evaluator, Judge, Test
from mim_jax.evaluators.features import (
    POOLINGS,
    Features,
    Part,
    Pool,
    collect,
    gather,
    pool_tokens,
    pooled,
    recipe,
    recipes,
)
from mim_jax.evaluators.fewshot import FewShot
from mim_jax.evaluators.health import Health
from mim_jax.evaluators.judged import Judged
from mim_jax.evaluators.knn import KNN
from mim_jax.evaluators.linear import Linear
from mim_jax.evaluators.robustness import Robustness
from mim_jax.evaluators.segmentation import Segmentation
from mim_jax.evaluators.subset import EvenlySpaced, Repeated

__all__ = [
    'EVALUATORS',
    'KNN',
    'POOLINGS',
    'Accuracy',
    'Adversarial',
    'Attentive',
    'Augmented',
    'Evaluator',
    'EvenlySpaced',
    'Features',
    'FewShot',
    'Health',
    'Judge',
    'Judged',
    'Linear',
    'Part',
    'Pool',
    'Repeated',
    'Robustness',
    'Segmentation',
    'Test',
    'collect',
    'gather',
    'pool_tokens',
    'pooled',
    'recipe',
    'recipes',
]

EVALUATORS: dict[str, type[Evaluator] | type[Judge]] = {
    'knn': KNN,
    'fewshot': FewShot,
    'linear': Linear,
    'attentive': Attentive,
    'health': Health,
    'augmented': Augmented,
    'accuracy': Accuracy,
    'adversarial': Adversarial,
    'robustness': Robustness,
    'segmentation': Segmentation,
}
