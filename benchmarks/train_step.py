"""Time, throughput and memory of a config's training step on the devices at hand.

    python benchmarks/train_step.py [--config=configs/dtm_vitb.py] [--steps=20]
        [--config.any.field=value ...]

Random images and, where the method has a teacher, random teacher weights: no data is read. For a
method that morphs, the same step without morphing is timed in turn with it, in the same run.
"""

import argparse
import functools
import time

import jax
import numpy as np

from mim_jax import config as configs
from mim_jax import experiment, sharding
from mim_jax.data import image_fields
from mim_jax.logs import peak_flops
from mim_jax.program import Program

BATCH = 8


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--config', default='configs/dtm_vitb.py')
    parser.add_argument('--steps', type=int, default=20)
    options, rest = parser.parse_known_args()
    assignments = [('train.total_steps', '1000'), ('data.batch_size', str(BATCH))]
    for argument in rest:
        name, _, value = argument.removeprefix('--config.').partition('=')
        assignments.append((name, value))

    variants = {'as configured': []}
    config = configs.load(options.config)
    if config.objective.get('morphing', {}).get('schedule', 'none') != 'none':
        variants['without morphing'] = [('objective.morphing.schedule', 'none')]
    steps = {name: Step(options.config, assignments + more) for name, more in variants.items()}
    for _ in range(options.steps):
        for step in steps.values():
            step.run()

    devices = next(iter(steps.values())).program.mesh.devices.flat
    print(
        f'{options.config}: {len(devices)} x {devices[0].device_kind}, {options.steps} steps each'
    )
    titles = ('ms/step', 'min', 'img/s', 'GFLOP', 'MFU', 'GiB', 'compile s')
    print(' ' * 18 + ''.join(f'{title:>11}' for title in titles))
    for name, step in steps.items():
        print(f'{name:18}{step.row()}')
    if len(steps) > 1:
        first, second = (np.array(step.seconds) for step in steps.values())
        print(f'morphing adds {100 * (np.median(first) / np.median(second) - 1):.1f} % (medians)')


class Step:
    """One compiled step and its times."""

    def __init__(self, config, assignments):
        config = configs.override(configs.load(config), experiment.Experiment, assignments)
        run = experiment.from_config(config)
        self.program = Program.make(run, epoch_examples=1_281_167, fields=image_fields(1000))
        traced = self.program.trace()
        self.flops = self.program.model_flops(traced)
        start = time.perf_counter()
        self.compiled = traced.lower().compile()
        self.compile_seconds = time.perf_counter() - start
        place = jax.tree.map(lambda x: x.sharding, self.program.abstract_state)
        arrays = self.program.abstract_batch
        init = functools.partial(self.program.step.init, arrays['images'])
        self.state = jax.jit(init, out_shardings=place)()
        rng = np.random.default_rng(0)
        # Numbers small enough to be classes, whatever they stand for.
        batch = {k: rng.integers(0, 256, a.shape).astype(a.dtype) for k, a in arrays.items()}
        self.batch = sharding.put_batch(batch, self.program.mesh)
        self.images = run.data.batch_size
        self.run()  # the first step is slower
        self.seconds = []

    def run(self):
        start = time.perf_counter()
        self.state, metrics = self.compiled(self.state, self.batch)
        jax.block_until_ready(metrics)
        if hasattr(self, 'seconds'):
            self.seconds.append(time.perf_counter() - start)

    def row(self):
        median, least = np.median(self.seconds), min(self.seconds)
        devices = self.program.mesh.devices.flat
        peak = peak_flops(devices[0].device_kind)
        mfu = f'{100 * self.flops / median / (peak * len(devices)):.1f} %' if peak else 'unknown'
        memory = self.compiled.memory_analysis()
        size = memory.argument_size_in_bytes + memory.output_size_in_bytes
        size += memory.temp_size_in_bytes - memory.alias_size_in_bytes
        return (
            f'{1e3 * median:11.1f}{1e3 * least:11.1f}{self.images / median:11.1f}'
            f'{self.flops / 1e9:11.1f}{mfu:>11}{size / 2**30:11.2f}{self.compile_seconds:11.1f}'
        )


if __name__ == '__main__':
    main()
