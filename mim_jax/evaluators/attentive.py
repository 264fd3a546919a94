"""Attentive probe: a learned query attends to frozen tokens, and a linear classifier reads it.

As CAE evaluates (Chen et al., "Context Autoencoder for Self-Supervised Representation Learning",
IJCV 2023, arXiv 2202.03026; tools/run_attentive.py, models/modeling_finetune.py and
scripts/cae_base_800e.sh of its released code): `models.AttentivePool` on class and patch tokens, a
batch norm without affine (epsilon 1e-5), a linear layer drawn with deviation 0.01; SGD with
momentum 0.9 and without weight decay, cosine after a linear warm-up, 90 epochs; its rate is 0.4 at
a batch of 8,192.

Three things differ: as in the linear probe, images are whole and without augmentation, so that the
encoder sees each once; several learning rates are trained at once, of which a held-out part of the
training images chooses one; and the batch norm, of the batch while it is trained, ends with the
mean and variance of all images that were trained on in place of running averages.

Every process trains the same probes, on its first device, where one batch of tokens is at a time;
each judges its own test images.
"""

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax import keys
from mim_jax.errors import UserError
from mim_jax.evaluators import linear
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.features import (
    Features,
)
from mim_jax.models.pooling import AttentivePool
from mim_jax.ranges import Batch, Count, Number, OpenShare, Positive, Seed, Width

EPSILON = 1e-5
HEAD_WIDTH = 64
ROWS = 256  # images that are pooled at once where nothing is trained


@dataclasses.dataclass(frozen=True)
class Attentive:
    """Config section of the attentive probe.

    heads: of the attention; None: one per 64 of the tokens' width, as ViTs have it.
    learning_rates: for a batch of 256 images, scaled with the batch; all are trained.
    epochs, warmup_epochs, batch_size, holdout, seed: as of the linear probe.
    max_gigabytes: the run does not start where the tokens of all images take more.
    max_train, max_test: see `evaluators.Evaluator`.
    """

    labels: ClassVar[bool] = True
    test: ClassVar[Test] = 'needed'
    pool: ClassVar[str] = 'tokens'

    heads: Width | None = None
    learning_rates: tuple[Positive, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    epochs: Count = 90
    warmup_epochs: Number = 10
    batch_size: Batch = 256
    holdout: OpenShare = 0.1
    seed: Seed = 0
    max_gigabytes: Positive = 16.0
    max_train: Count | None = 10000
    max_test: Count | None = 5000

    def __post_init__(self):
        linear.check_training(self)

    def run(
        self, train: Features, test: Features, *, num_classes: int
    ) -> Iterator[tuple[str, float]]:
        """Yields what the linear probe does: ('top1', share correct in 0..1 of the test images),
        ('top5', …), ('holdout_top1', …) and ('learning_rate', …).

        train, test: with tokens [n,S,D] as rows. Raises UserError as the linear probe, and where
        the heads do not divide the width.
        """
        train = linear.checked(train, test, num_classes=num_classes, evaluator='attentive')
        pool = self._pool(train.rows)
        held, trained = linear.hold_out(len(train.rows), holdout=self.holdout, seed=self.seed)
        # One device, whatever mesh the trainer has set.
        with jax.set_mesh(linear.one_device()):
            probes = fit(
                pool,
                train.rows,
                train.labels,
                ids=trained,
                num_classes=num_classes,
                learning_rates=self.learning_rates,
                epochs=self.epochs,
                warmup_epochs=self.warmup_epochs,
                batch_size=self.batch_size,
                seed=self.seed,
            )
            statistics = [
                linear.standardisation(rows, epsilon=EPSILON)
                for rows in pooled(pool, probes['pool'], train.rows, trained)
            ]
            found = ranks(pool, probes, statistics, train.rows[held], train.labels[held])
            correct = (found < 1).mean(axis=1)
            best = int(correct.argmax())  # the first of equally good ones
            probe = jax.tree.map(lambda x: x[best : best + 1], probes)
            mine = ranks(pool, probe, statistics[best : best + 1], test.rows, test.labels)[0]
        yield from linear.accuracies(mine, num_classes=num_classes)
        yield 'holdout_top1', float(correct[best])
        yield 'learning_rate', self.learning_rates[best]

    def _pool(self, tokens: np.ndarray) -> AttentivePool:
        width = tokens.shape[-1]
        heads = self.heads or max(width // HEAD_WIDTH, 1)
        if width % heads:
            raise UserError(
                f'config.eval.attentive: {heads} heads do not divide tokens of width {width}; set '
                'eval.attentive.heads to a divisor.'
            )
        dtype = 'bfloat16' if tokens.dtype == jnp.bfloat16 else 'float32'
        return AttentivePool(heads, dtype=dtype)


def fit(
    pool: AttentivePool,
    tokens: np.ndarray,
    labels: np.ndarray,
    *,
    ids: np.ndarray,
    num_classes: int,
    learning_rates: tuple[float, ...],
    epochs: int,
    warmup_epochs: int,
    batch_size: int,
    seed: int,
) -> dict[str, Any]:
    """The probes of all L learning rates, from one start and one order of the images: pool (its
    parameters), kernel [L,D,C], bias [L,C].

    tokens [n,S,D] and labels int [n] on the host, of which the images `ids` are trained on; what is
    left of an epoch after its last full batch is dropped.
    """
    count, width = len(ids), tokens.shape[-1]
    batch_size = min(batch_size, count)
    steps = count // batch_size
    key = jax.random.key(seed)
    kernel_key = keys.named(key, 'kernel')
    probe = {
        'pool': pool.init(keys.named(key, 'pool'), tokens[:1])['params'],
        'kernel': linear.INIT_STD * jax.random.normal(kernel_key, (width, num_classes)),
        'bias': jnp.zeros(num_classes),
    }
    probes = jax.tree.map(lambda x: jnp.stack([x] * len(learning_rates)), probe)
    carry = probes, jax.tree.map(jnp.zeros_like, probes)
    peaks = jnp.asarray(learning_rates) * batch_size / 256
    progress = np.arange(epochs * steps, dtype=np.float32) / (epochs * steps)
    factors = np.asarray(linear.schedule(progress, warmup=warmup_epochs / epochs))
    for epoch in range(epochs):
        order = jax.random.permutation(jax.random.fold_in(keys.named(key, 'order'), epoch), count)
        for i, places in enumerate(np.asarray(order)[: steps * batch_size].reshape(steps, -1)):
            batch = ids[places]
            rates = peaks * factors[epoch * steps + i]
            carry = _step(pool, carry, tokens[batch], labels[batch], rates)
    return carry[0]


@functools.partial(jax.jit, static_argnames='pool', donate_argnames='carry')
def _step(pool, carry, tokens, labels, rates):
    def loss(probe):
        x = pool.apply({'params': probe['pool']}, tokens)
        centred = x - x.mean(axis=0)
        x = centred * jax.lax.rsqrt((centred**2).mean(axis=0) + EPSILON)
        logits = jnp.matmul(x, probe['kernel'], precision='highest') + probe['bias']
        return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

    def update(probe, momentum, rate):
        gradient = jax.grad(loss)(probe)
        momentum = jax.tree.map(lambda m, g: linear.MOMENTUM * m + g, momentum, gradient)
        return jax.tree.map(lambda p, m: p - rate * m, probe, momentum), momentum

    return jax.vmap(update)(*carry, rates)


def pooled(pool: AttentivePool, params: Any, tokens: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """What the pools of L probes make of the images `ids`: float32 [L,m,D], on the host."""
    parts = []
    for start in range(0, len(ids), ROWS):
        chosen = ids[start : start + ROWS]
        filled = np.resize(chosen, ROWS)  # one shape, whatever is left
        parts.append(np.asarray(_pooled(pool, params, tokens[filled]))[:, : len(chosen)])
    probes = len(jax.tree.leaves(params)[0])
    return np.concatenate([np.zeros((probes, 0, tokens.shape[-1]), np.float32), *parts], axis=1)


@functools.partial(jax.jit, static_argnames='pool')
def _pooled(pool, params, tokens):
    return jax.vmap(lambda own: pool.apply({'params': own}, tokens))(params)


def ranks(
    pool: AttentivePool,
    probes: dict[str, Any],
    statistics: list[tuple[np.ndarray, np.ndarray]],
    tokens: np.ndarray,
    labels: np.ndarray,
) -> np.ndarray:
    """How many classes each probe scores above the true one, int32 [L,n]; see `linear.ranks`.

    statistics: mean and 1 / deviation of what each pool makes of the images trained on.
    """
    found = []
    rows = pooled(pool, probes['pool'], tokens, np.arange(len(tokens)))
    for i, (mean, scale) in enumerate(statistics):
        model = {name: probes[name][i : i + 1] for name in ('kernel', 'bias')}
        found.append(linear.ranks(model, (rows[i] - mean) * scale, labels)[0])
    return np.stack(found)
