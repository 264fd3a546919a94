"""The attentive probe's training against PyTorch: CAE's block token by token, SGD, float64."""

import jax
import numpy as np
import pytest

torch = pytest.importorskip('torch')

from mim_jax import keys  # noqa: E402
from mim_jax.evaluators import attentive, linear  # noqa: E402
from mim_jax.models import AttentivePool  # noqa: E402

WIDTH, HEADS, CLASSES, COUNT = 8, 2, 3, 22
RATES, EPOCHS, WARMUP, BATCH, SEED = (0.5, 2.0), 4, 1, 8, 5


def leaf(array):
    return torch.tensor(np.asarray(array), dtype=torch.float64, requires_grad=True)


def logits(p, tokens):
    """p: the probe's tensors as named in JAX; tokens [B,S,D]."""

    def norm(x, name, bias):
        return torch.nn.functional.layer_norm(x, (WIDTH,), p[name]['scale'], bias, 1e-6)

    attention, size = p['attention'], WIDTH // HEADS
    query = norm(p['query'], 'norm_query', p['norm_query']['bias'])
    keys_ = norm(tokens, 'norm_key', None)
    values = norm(tokens, 'norm_value', p['norm_value']['bias'])
    query = torch.einsum('d,dhk->hk', query, attention['query']['kernel'])
    query = query + attention['query']['bias']
    keys_ = torch.einsum('bsd,dhk->bshk', keys_, attention['key']['kernel'])
    values = torch.einsum('bsd,dhk->bshk', values, attention['value']['kernel'])
    values = values + attention['value']['bias']
    weights = (torch.einsum('hk,bshk->bhs', query, keys_) * size**-0.5).softmax(-1)
    mixed = torch.einsum('bhs,bshk->bhk', weights, values)
    x = torch.einsum('bhk,hkd->bd', mixed, attention['out']['kernel']) + attention['out']['bias']
    x = torch.nn.functional.batch_norm(x, None, None, training=True, eps=1e-5)
    return x @ p['kernel'] + p['bias']


def test_training_equals_pytorch():
    generator = np.random.default_rng(0)
    tokens = generator.normal(size=(COUNT, 5, WIDTH)).astype(np.float32)
    labels = generator.integers(CLASSES, size=COUNT).astype(np.int32)
    tokens[:, 3, :CLASSES] += 3 * np.eye(CLASSES)[labels]
    ids = np.arange(COUNT)[::-1][:20]
    pool = AttentivePool(HEADS)
    found = attentive.fit(
        pool,
        tokens,
        labels,
        ids=ids,
        num_classes=CLASSES,
        learning_rates=RATES,
        epochs=EPOCHS,
        warmup_epochs=WARMUP,
        batch_size=BATCH,
        seed=SEED,
    )
    key, steps = jax.random.key(SEED), 20 // BATCH
    for i, rate in enumerate(RATES):
        start = pool.init(keys.named(key, 'pool'), tokens[:1])['params']
        kernel = 0.01 * jax.random.normal(keys.named(key, 'kernel'), (WIDTH, CLASSES))
        probe = jax.tree.map(leaf, {**start, 'kernel': kernel, 'bias': np.zeros(CLASSES)})
        optimizer = torch.optim.SGD(jax.tree.leaves(probe), lr=1.0, momentum=0.9)
        first = None
        for epoch in range(EPOCHS):
            order = jax.random.permutation(
                jax.random.fold_in(keys.named(key, 'order'), epoch), len(ids)
            )
            for step in range(steps):
                chosen = ids[np.asarray(order)[step * BATCH : (step + 1) * BATCH]]
                done = np.float32((epoch + step / steps) / EPOCHS)
                factor = float(linear.schedule(done, warmup=WARMUP / EPOCHS))
                optimizer.param_groups[0]['lr'] = rate * BATCH / 256 * factor
                optimizer.zero_grad()
                scores = logits(probe, torch.tensor(tokens[chosen], dtype=torch.float64))
                loss = torch.nn.functional.cross_entropy(
                    scores, torch.tensor(labels[chosen], dtype=torch.int64)
                )
                loss.backward()
                optimizer.step()
                first = first or float(loss.detach())
        assert float(loss.detach()) < first
        head = {name: probe.pop(name) for name in ('kernel', 'bias')}
        mine = jax.tree.map(lambda x, i=i: x[i], found)
        for ours, theirs in ((mine['pool'], probe), *((mine[n], head[n]) for n in head)):
            jax.tree.map(
                lambda a, b: np.testing.assert_allclose(a, b.detach(), rtol=1e-3, atol=1e-5),
                ours,
                theirs,
            )
        moved = np.abs(np.asarray(mine['pool']['query'])).max()
        assert moved > 1e-4  # beside the root of the epsilon, 1e-3
