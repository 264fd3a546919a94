"""A linear classifier of tokens: multinomial logistic regression, fitted to its optimum."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax

# Weight of half the squared norm of the kernel (of standardised features), against the mean
# cross-entropy. It only keeps the optimum finite where the classes can be separated.
L2 = 1e-4
ITERATIONS = 300
TOLERANCE = 1e-4  # largest entry of the gradient at which the fit ends
ROWS = 16384  # whose logits are held at once


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Probe:
    """Class scores x @ kernel + bias; kernel [D,C], bias [C]."""

    kernel: jax.Array
    bias: jax.Array

    def __call__(self, tokens: jax.Array) -> jax.Array:
        """Logits [...,C] of tokens [...,D]."""
        return jnp.matmul(tokens, self.kernel, precision='highest') + self.bias


def fit(tokens: np.ndarray, labels: np.ndarray, *, num_classes: int) -> Probe:
    """The probe that minimises mean cross-entropy + L2 / 2 * squared norm of its kernel.

    Features are standardised by the mean and deviation over `tokens` (a feature that never changes
    is only centred); the probe that comes back takes them as they are. L-BFGS, from zero.

    tokens: float32 [M,D], on the host. labels: int [M] in 0..num_classes-1.
    """
    mean = tokens.mean(axis=0, dtype=np.float64).astype(np.float32)
    scale = tokens.std(axis=0, dtype=np.float64).astype(np.float32)
    scale = np.where(scale > 0, scale, np.float32(1))
    rows = min(ROWS, len(tokens))
    missing = -len(tokens) % rows
    x = np.pad((tokens - mean) / scale, ((0, missing), (0, 0)))
    x = x.reshape(-1, rows, x.shape[1])
    y = np.pad(np.asarray(labels, np.int32), (0, missing), constant_values=-1).reshape(-1, rows)
    start = np.zeros((x.shape[-1], num_classes), np.float32), np.zeros(num_classes, np.float32)
    kernel, bias = _minimise(start, x, y, np.float32(len(tokens)))
    kernel = np.asarray(kernel) / scale[:, None]
    return Probe(jnp.asarray(kernel), jnp.asarray(bias - mean @ kernel))


def _cross_entropy(weights, x, y):
    """Sum over the rows with a label (0 or more) of x [K,R,D], y [K,R], one chunk at a time."""
    kernel, bias = weights

    @jax.checkpoint
    def chunk(total, rows):
        x, y = rows
        logits = jnp.matmul(x, kernel, precision='highest') + bias
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.maximum(y, 0))
        return total + jnp.where(y >= 0, losses, 0).sum(), None

    return jax.lax.scan(chunk, jnp.float32(0), (x, y))[0]


@jax.jit
def _minimise(weights, x, y, count):
    def objective(weights):
        return _cross_entropy(weights, x, y) / count + L2 / 2 * (weights[0] ** 2).sum()

    solver = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(objective)

    def unfinished(carry):
        *_, gradient, step = carry
        steepest = jnp.max(jnp.asarray([jnp.abs(g).max() for g in gradient]))
        return (step < ITERATIONS) & ((step == 0) | (steepest > TOLERANCE))

    def improve(carry):
        weights, state, _, step = carry
        value, gradient = value_and_grad(weights, state=state)
        updates, state = solver.update(
            gradient, state, weights, value=value, grad=gradient, value_fn=objective
        )
        return optax.apply_updates(weights, updates), state, gradient, step + 1

    start = (weights, solver.init(weights), weights, jnp.int32(0))
    return jax.lax.while_loop(unfinished, improve, start)[0]
