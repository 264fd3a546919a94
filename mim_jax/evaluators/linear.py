"""Linear probe: logistic regression on frozen features, trained for many learning rates at once.

The recipe is MAE's (He et al., CVPR 2022, appendix A.1; github.com/facebookresearch/mae,
main_linprobe.py and util/lars.py): batch norm without affine, LARS without weight decay, momentum
0.9, cosine with linear warm-up, a kernel drawn with deviation 0.01. As in DINOv2 (Oquab et al.,
TMLR 2024; github.com/facebookresearch/dinov2, eval/linear.py) several learning rates are trained on
the features of several poolings and numbers of last blocks, and one combination is chosen; here on
a part of the training images that is held out from training, not on the test images.

Two things differ from MAE: features are those of whole images, without augmentation, so that the
encoder sees each image once; and as they are frozen, batch norm's averages are the training images'
own mean and variance, from the first step on.

Every process trains the same classifiers, on its first device; each judges its own test images.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, Mesh

from mim_jax import keys
from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.features import (
    Features,
    Pool,
    Recipe,
    check_finite,
    check_labels,
    gather,
    ranks_of,
    recipe,
)
from mim_jax.ranges import Batch, Count, Depth, Number, OpenShare, Positive, Seed

MOMENTUM = 0.9
TRUST = 0.001
INIT_STD = 0.01
VARIANCE_EPSILON = 1e-6
ROWS = 1024  # images whose class scores are held at once, for all learning rates


@dataclasses.dataclass(frozen=True)
class Linear:
    """Config section of the linear probe.

    learning_rates: of LARS for a batch of 256 images, scaled with the batch; all are trained.
    epochs, warmup_epochs, batch_size: of the training; a batch is never larger than the set, and
      what is left of an epoch after its last full batch is dropped.
    holdout: share of the training images that choose the learning rate, and train nothing.
    seed: of the held-out part, the kernels and the order.
    pools: poolings that are tried, each with all of `blocks`; (): `pool` alone.
    blocks: how many last blocks a feature is made of, see `features.recipe` (DINOv2: 1 and 4).
    pool, max_train, max_test: see `evaluators.Evaluator`.
    """

    labels: ClassVar[bool] = True
    test: ClassVar[Test] = 'needed'

    learning_rates: tuple[Positive, ...] = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
    epochs: Count = 90
    warmup_epochs: Number = 10
    batch_size: Batch = 1024
    holdout: OpenShare = 0.1
    seed: Seed = 0
    pools: tuple[Pool, ...] = ()
    blocks: tuple[Depth, ...] = (1,)
    pool: Pool = 'mean'
    max_train: Count | None = None
    max_test: Count | None = None

    def __post_init__(self):
        check_training(self)
        if not self.blocks or len({*self.blocks}) < len(self.blocks):
            raise ValueError(f'blocks must be one or more different numbers, not {self.blocks}')
        if len({*self.pools}) < len(self.pools):
            raise ValueError(f'pools must be different, not {self.pools}')

    @property
    def recipes(self) -> tuple[Recipe, ...]:
        return tuple(recipe(pool, blocks=blocks) for pool, blocks in self._tried)

    @property
    def _tried(self) -> list[tuple[Pool, int]]:
        return [(pool, n) for pool in self.pools or (self.pool,) for n in self.blocks]

    def run(
        self, train: Features, test: Features, *, num_classes: int
    ) -> Iterator[tuple[str, float]]:
        """Yields ('top1', share correct in 0..1 of the test images), ('top5', …) where there are
        more than 5 classes, and of the combination that was chosen ('holdout_top1', …),
        ('learning_rate', …) and, where there are several, ('pool', its place in `pools` from 0) and
        ('blocks', …).

        Raises UserError for fewer than two training images, an empty split, labels outside
        0..num_classes-1 or features that are not finite.
        """
        train = checked(train, test, num_classes=num_classes, evaluator='linear')
        held, trained = self._split(train)
        best = None
        # One device, whatever mesh the trainer has set.
        with jax.set_mesh(one_device()):
            for number in range(len(self.recipes)):
                mine, held_out = _rows(trained, number), _rows(held, number)
                mean, scale = standardisation(mine)
                models = fit(
                    jnp.asarray((mine - mean) * scale),
                    jnp.asarray(trained.labels),
                    num_classes=num_classes,
                    learning_rates=self.learning_rates,
                    epochs=self.epochs,
                    warmup_epochs=self.warmup_epochs,
                    batch_size=self.batch_size,
                    seed=self.seed,
                )
                correct = (ranks(models, (held_out - mean) * scale, held.labels) < 1).mean(axis=1)
                rate = int(correct.argmax())  # the first of equally good ones
                if best is None or correct[rate] > best[0]:
                    model = jax.tree.map(lambda x, i=rate: x[i : i + 1], models)
                    best = correct[rate], number, rate, model, mean, scale
            accuracy, number, rate, model, mean, scale = best
            mine = ranks(model, (_rows(test, number) - mean) * scale, test.labels)[0]
        yield from accuracies(mine, num_classes=num_classes)
        yield 'holdout_top1', float(accuracy)
        yield 'learning_rate', self.learning_rates[rate]
        if len(self.pools) > 1:
            yield 'pool', float(number // len(self.blocks))
        if len(self.blocks) > 1:
            yield 'blocks', float(self._tried[number][1])

    def _split(self, train: Features) -> tuple[Features, Features]:
        """The held-out images and those that are trained on; at least one of each."""
        held, trained = hold_out(len(train.rows), holdout=self.holdout, seed=self.seed)
        return train.select(held), train.select(trained)


def checked(train: Features, test: Features, *, num_classes: int, evaluator: str) -> Features:
    """The training images of all processes. A collective.

    Raises UserError for fewer than two of them, an empty split, labels outside 0..num_classes-1 or
    features that are not finite.
    """
    for features, split in (train, 'training'), (test, 'test'):
        check_labels(features, num_classes=num_classes, evaluator=evaluator, split=split)
        check_finite(features, evaluator=evaluator, split=split)
    train = train.gathered()
    if len(train.rows) < 2:
        raise UserError(f'The {evaluator} evaluator needs two training images or more, not 1.')
    return train


def accuracies(mine: np.ndarray, *, num_classes: int) -> Iterator[tuple[str, float]]:
    """('top1', …) and, with more than 5 classes, ('top5', …) by `ranks` of this process's test
    images. A collective.
    """
    found = gather(mine)
    yield 'top1', float(np.mean(found < 1))
    if num_classes > 5:
        yield 'top5', float(np.mean(found < 5))


def check_training(evaluator: Any) -> None:
    """Raises ValueError for a wrong value among the fields of a training with several rates."""
    if not evaluator.learning_rates:
        raise ValueError('learning_rates must be one or more numbers')
    if evaluator.warmup_epochs >= evaluator.epochs:
        raise ValueError(
            f'warmup_epochs must be below epochs = {evaluator.epochs}, '
            f'not {evaluator.warmup_epochs}'
        )


def one_device() -> Mesh:
    """A mesh of this process's first device."""
    return Mesh(np.array(jax.local_devices()[:1]), ('one',), axis_types=(AxisType.Auto,))


def hold_out(count: int, *, holdout: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Places int of `count` images, rising: those held out and the others; at least one of each."""
    order = np.random.default_rng(seed).permutation(count)
    held = min(max(round(holdout * count), 1), count - 1)
    return np.sort(order[:held]), np.sort(order[held:])


def standardisation(
    rows: np.ndarray, *, epsilon: float = VARIANCE_EPSILON
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and 1 / deviation, float32 [D], of rows [n,D]: a batch norm of all of them."""
    mean = rows.mean(axis=0, dtype=np.float64).astype(np.float32)
    variance = np.mean(np.square(rows - mean), axis=0, dtype=np.float64)
    return mean, (1 / np.sqrt(variance + epsilon)).astype(np.float32)


def _rows(features: Features, number: int) -> np.ndarray:
    return (features.rows, *features.further)[number]


def lars() -> optax.GradientTransformation:
    """MAE's LARS for a kernel and a bias, but for the learning rate: the step is minus the learning
    rate times its result.

    The trust ratio is the kernel's alone, and scales what goes into the momentum; `optax.lars`
    puts the learning rate into the momentum as well, which differs where it changes.
    """
    return optax.chain(
        optax.masked(
            optax.scale_by_trust_ratio(trust_coefficient=TRUST), {'kernel': True, 'bias': False}
        ),
        optax.trace(decay=MOMENTUM),
    )


def schedule(progress: jax.Array, *, warmup: float) -> jax.Array:
    """MAE's factor of the learning rate: linear to 1 over the share `warmup` of the training, then
    half a cosine to 0. progress: share of the training that is done, 0 to 1.
    """
    cosine = 0.5 * (1 + jnp.cos(jnp.pi * (progress - warmup) / (1 - warmup)))
    return jnp.where(progress < warmup, progress / max(warmup, 1e-12), cosine)


@functools.partial(
    jax.jit,
    static_argnames=(
        'num_classes',
        'learning_rates',
        'epochs',
        'warmup_epochs',
        'batch_size',
        'seed',
    ),
)
def fit(
    x: jax.Array,
    labels: jax.Array,
    *,
    num_classes: int,
    learning_rates: tuple[float, ...],
    epochs: int,
    warmup_epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, jax.Array]:
    """The classifiers of all L learning rates: kernel [L,D,C], bias [L,C], from one start and one
    order of the images.

    x: normalised features float32 [n,D]; labels int32 [n].
    """
    count, width = x.shape
    batch_size = min(batch_size, count)
    steps = count // batch_size
    key = jax.random.key(seed)
    peaks = jnp.asarray(learning_rates) * batch_size / 256
    kernel = INIT_STD * jax.random.normal(keys.named(key, 'kernel'), (width, num_classes))
    params = {'kernel': kernel, 'bias': jnp.zeros(num_classes)}
    optimizer = lars()

    def loss(params, x, labels):
        logits = jnp.matmul(x, params['kernel'], precision='highest') + params['bias']
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(peak, params, state, x, labels, factor):
        updates, state = optimizer.update(jax.grad(loss)(params, x, labels), state, params)
        updates = jax.tree.map(lambda update: -peak * factor * update, updates)
        return optax.apply_updates(params, updates), state

    def epoch(carry, number):
        order_key = jax.random.fold_in(keys.named(key, 'order'), number)
        order = jax.random.permutation(order_key, count)[: steps * batch_size]

        def step(carry, i):
            ids = jax.lax.dynamic_slice_in_dim(order, i * batch_size, batch_size)
            factor = schedule((number + i / steps) / epochs, warmup=warmup_epochs / epochs)
            # The features of a batch are fetched once for all learning rates.
            every = jax.vmap(update, in_axes=(0, 0, 0, None, None, None))
            return every(peaks, *carry, x[ids], labels[ids], factor), None

        return jax.lax.scan(step, carry, jnp.arange(steps))[0], None

    start = jax.vmap(lambda _: (params, optimizer.init(params)))(peaks)
    return jax.lax.scan(epoch, start, jnp.arange(epochs))[0][0]


def ranks(models: dict[str, jax.Array], rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many classes each model scores above the true one, int32 [L,n]: 0 is a correct answer.

    Equal scores go to the lower class; scores that are not finite rank last.
    """
    found = [np.zeros((len(models['bias']), 0), np.int32)]
    for start in range(0, len(rows), ROWS):
        x, y = rows[start : start + ROWS], labels[start : start + ROWS]
        missing = ROWS - len(x)
        part = _ranks(models, np.pad(x, ((0, missing), (0, 0))), np.pad(y, (0, missing)))
        found.append(np.asarray(part)[:, : len(x)])
    return np.concatenate(found, axis=1)


@jax.jit
def _ranks(models, x, labels):
    def one(model):
        logits = jnp.matmul(x, model['kernel'], precision='highest') + model['bias']
        return ranks_of(logits, labels)

    return jax.vmap(one)(models)
