"""Repeats one step of a run, and says which of its images, and which of the parameters, are behind
a loss or gradient that is not finite.

    python -m mim_jax.replay --workdir=DIR --step=N

The run goes on from its newest intact checkpoint before that step, or from its start, in memory;
what a killed run left half-written is removed, as by any start. The numbers are those of the run
with the config that the directory has now, to the last bit on the same devices.
"""

import argparse
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax import checkpoints, distributed, layout, norms, sharding, work_directory
from mim_jax.errors import UserError
from mim_jax.losses import Weighted
from mim_jax.main import use_compilation_cache
from mim_jax.program import Program
from mim_jax.restoring import read_config
from mim_jax.sharding import path_name
from mim_jax.train_step import Batch, TrainState
from mim_jax.trainer import Trainer

SHOWN = 10  # images or arrays that are named


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a mistake told in one sentence."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.replay', allow_abbrev=False)
    parser.add_argument('--workdir', required=True, metavar='DIR')
    parser.add_argument('--step', required=True, type=int, metavar='N')
    options = parser.parse_args(arguments)
    try:
        distributed.initialize()
        use_compilation_cache()
        run = read_config(options.workdir)
        say = print if distributed.is_main() else lambda text: None
        with work_directory.locked(options.workdir):
            replay(Trainer(run, options.workdir), options.step, say=say)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def replay(trainer: Trainer, step: int, *, say: Callable[[str], Any]) -> None:
    """Repeats a step (1 is the first one) and says what came of it.

    Raises UserError where the run has no such step, or where steps that it did at another length
    would be repeated.
    """
    if not 1 <= step <= trainer.total:
        raise UserError(f'--step={step}: the steps of this run are 1 to {trainer.total}.')
    first = checkpoints.newest_intact(trainer.workdir, before=step) or 0
    lengthened = layout.lengthened_after(trainer.workdir)
    if first < lengthened:
        raise UserError(
            f'--step={step}: {trainer.workdir} was lengthened after step {lengthened}, and up to '
            'there its steps had other schedules; only those that follow a checkpoint from there '
            'on can be repeated.'
        )
    state, batches = _after(trainer, first)
    compiled = trainer.program.trace().lower().compile()
    before = f'the checkpoint of step {first}' if first else 'the start'
    say(f'{trainer.workdir}: step {step}, {step - first} after {before}')
    for number in range(first + 1, step + 1):
        batch = sharding.put_batch(next(batches), trainer.program.mesh)
        if number < step:
            state, _ = compiled(state, batch)
    batches.close()
    looked = jax.device_get(_look(trainer.program)(state, batch))  # the step donates the state
    _, metrics = compiled(state, batch)
    metrics.pop('blocks', None)
    for name, value in sorted(jax.device_get(metrics).items()):
        say(f'{name:20} {float(value):.6g}')
    say('norm of the gradient')
    params = trainer.program.abstract_state.variables['params']
    for name, value in zip(
        norms.names(trainer.program.step.trained(params)), looked['norms'], strict=True
    ):
        say(f'  {name:18} {float(value):.6g}')
    for what, finite in looked['arrays'].items():
        flat = jax.tree_util.tree_leaves_with_path(finite)
        say(_told(what, [path_name(path) for path, ok in flat if not ok]))
    items = batches.items(step - 1)
    for what, finite in looked['images'].items():
        named = [
            f'{items[row]} ({trainer.source.describe(items[row])})'
            for row in np.flatnonzero(~finite)
        ]
        say(_told(what, named))


def _look(program: Program) -> Callable[[TrainState, Batch], dict[str, Any]]:
    """The jitted function (state, batch as read) -> the gradient's `norms`; whether gradient and
    parameters are finite, array by array; and the images' features, and, where an image has a loss
    of its own, that and its gradient [B].
    """
    step, objective = program.step, program.objective

    def look(state: TrainState, batch: Batch) -> dict[str, Any]:
        grads, _, _ = step.gradients(state, batch)
        batch, key = step.drawn(state, batch)
        batch = step.augment(batch['keys'], batch)
        variables = state.variables
        tokens = objective.features(variables, batch['images']).tokens
        images = {'features of images': jnp.isfinite(tokens).all(axis=(1, 2))}

        def one(row: Batch) -> tuple[jax.Array, jax.Array]:
            row = jax.tree.map(lambda x: x[None], row)

            def loss(params: Any) -> jax.Array:
                changed = {**variables, 'params': variables['params'] | params}
                value = objective.loss(changed, row, key, state.step)[0]
                return value.mean if isinstance(value, Weighted) else value

            value, grads = jax.value_and_grad(loss)(step.trained(variables['params']))
            return jnp.isfinite(value), jnp.isfinite(optax.tree.norm(grads))

        if not objective.needs_whole_batch and objective.batch_parts == 1:
            losses, gradients = jax.lax.map(one, batch)
            images |= {'losses of images': losses, 'gradients of images': gradients}
        arrays = {'parameters': variables['params'], 'gradient': grads}
        return {
            'norms': norms.norms(grads),
            'arrays': jax.tree.map(lambda x: jnp.isfinite(x).all(), arrays),
            'images': images,
        }

    look = sharding.on_mesh(look, program.mesh)
    return jax.jit(look, out_shardings=sharding.replicated(program.mesh))


def _told(what: str, wrong: list[str]) -> str:
    if not wrong:
        return f'{what}: all finite'
    more = f' and {len(wrong) - SHOWN} more' if len(wrong) > SHOWN else ''
    return f'{what}: {len(wrong)} not finite: {", ".join(wrong[:SHOWN])}{more}'


def _after(trainer: Trainer, step: int) -> tuple[TrainState, Any]:
    """The state of the checkpoint of a step (0: of the start), and the batches from there."""
    program = trainer.program
    batches = trainer.all_batches()
    if not step:
        start = trainer.start or program.start()
        return program.init(trainer.pretrained, start and start.params), batches
    reading = checkpoints.Checkpoints(trainer.workdir, trainer.run.checkpoint)
    state, progress = reading.restore(program.restorable(), step=step)
    reading.close()
    batches.set_state(progress['data'])
    variables = {**trainer.pretrained, **state.variables}
    return state.replace(variables=variables), batches


if __name__ == '__main__':
    sys.exit(main())
