"""Programs of the methods at their embedded size."""

from pathlib import Path

from mim_jax import config as configs
from mim_jax import data, experiment
from mim_jax.data.embedded import EmbeddedScenes
from mim_jax.program import Program

CONFIGS = Path(__file__).parent.parent.parent / 'configs'
BATCH, STEPS = 16, 30


def make_program(name, *, accumulation=1, change=lambda config: None, **mesh):
    """The program of a method at its embedded size, on one device unless `mesh` says otherwise."""
    config = configs.load(f'{CONFIGS / name}.py:embedded')
    config.data.batch_size = BATCH
    config.data.source.update(num_train=64, num_test=32)
    config.train.update(total_steps=STEPS, accumulation=accumulation)
    config.mesh.update({'data': 1, 'min_shard_size': 64, **mesh})
    # Adam divides by the gradient's own size: without this, rounding decides where it is tiny.
    config.optimizer.eps = 1e-3
    change(config)
    fields = EmbeddedScenes.fields
    return Program.make(experiment.from_config(config), epoch_examples=64, fields=fields)


def host_batches(program, count):
    source = data.make_source(program.run.data, split='train')
    host = data.train_batches(source, program.run.data, views=program.views, seed=0)
    return [next(host) for _ in range(count)]
