"""Time, throughput and memory of a config's training step on the devices at hand.

    python benchmarks/train_step.py [--config=configs/dtm_vitb.py] [--config.any.field=value ...]
        [--vary='config=PATH field=value xla.option=value ...' ...] [--steps=20] [--rounds=1]

Random images and, where the method has a teacher, random teacher weights: no data is read. Every
`--vary` is a row, the step with these fields set; `config` replaces the config, `xla.` options go
to the compiler. Without one, a method that morphs is timed in turn with itself without morphing.

Every step is waited for; the first of a row are not counted. With `--rounds` the rows take
turns. `processor` is the time of all threads of the host together, in ms (the least), which other
programs on a CPU disturb less than the clock's. `GiB` is what the compiled step needs, arguments
and temporaries; `peak` what the process has taken at most so far, where the device says.
Compilation runs on `--threads` threads, the first row alone: with more than one, only its time is
that of a compilation by itself. `--profile=DIR` traces three more steps of the last row that ran
(`profile_summary.py` reads the trace).
"""

import argparse
import concurrent.futures
import gzip
import time
from pathlib import Path

import jax
import numpy as np
from timing import WARM_UP, reason

from mim_jax import config as configs
from mim_jax import experiment, sharding
from mim_jax.logs import peak_flops
from mim_jax.program import Program

BATCH = 8
TITLES = (
    'ms/step',
    'min',
    'processor',
    'img/s',
    'GFLOP',
    'TFLOP/s',
    'MFU',
    'GiB',
    'peak',
    'compile s',
    'loss',
)


def main():
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument('--config', default='configs/dtm_vitb.py')
    parser.add_argument('--vary', action='append', default=[])
    parser.add_argument('--steps', type=int, default=20)
    parser.add_argument('--warm_up', type=int, default=WARM_UP)
    parser.add_argument('--rounds', type=int, default=1)
    parser.add_argument('--threads', type=int, default=1)
    parser.add_argument('--together', action='store_true', help='compile the first row with all')
    parser.add_argument('--profile', help='folder for a trace of the last row')
    options, rest = parser.parse_known_args()
    common = [('train.total_steps', '1000'), ('data.batch_size', str(BATCH))]
    common += [pair(argument.removeprefix('--config.')) for argument in rest]

    variants = {vary: [pair(word) for word in vary.split()] for vary in options.vary}
    if not variants:
        variants['as configured'] = []
        config = configs.load(options.config)
        if config.objective.get('morphing', {}).get('schedule', 'none') != 'none':
            variants['without morphing'] = [('objective.morphing.schedule', 'none')]
            options.rounds = max(options.rounds, options.steps)

    devices = jax.devices()
    print(
        f'{options.config} {" ".join(rest)}: {len(devices)} x {devices[0].device_kind}, '
        f'jax {jax.__version__}, {options.steps} steps each'
    )
    first = 2 + max(map(len, variants))
    print(' ' * first + ''.join(f'{title:>10}' for title in TITLES), flush=True)
    steps = {}
    for name, assignments in variants.items():
        try:
            steps[name] = Step(options.config, common + assignments)
        except Exception as error:
            print(f'{name:{first}}refused: {reason(error)}', flush=True)
    with concurrent.futures.ThreadPoolExecutor(options.threads) as pool:
        running = [pool.submit(step.compile) for step in list(steps.values())[:1]]
        if not options.together:
            concurrent.futures.wait(running)
        running += [pool.submit(step.compile) for step in list(steps.values())[1:]]
        concurrent.futures.wait(running)

    place = Place()
    for turn in range(options.rounds):
        for name, step in steps.items():
            last = turn == options.rounds - 1
            count = options.steps * (turn + 1) // options.rounds - len(step.seconds)
            step.run(place, count, warm_up=1 if turn else options.warm_up)
            if last:
                print(f'{name:{first}}{step.row()}', flush=True)
    if list(steps) == ['as configured', 'without morphing']:
        with_it, without = (np.median(step.seconds) for step in steps.values())
        print(f'morphing adds {100 * (with_it / without - 1):.1f} % (medians)')
    good = [(name, step) for name, step in steps.items() if not step.failed]
    if options.profile and good:
        name, step = good[-1]
        step.profile(place, Path(options.profile))
        print(f'traced into {options.profile}: {name}')


def pair(text):
    name, _, value = text.partition('=')
    return name, value


class Place:
    """The state and the batch on the devices, kept for the next row if it has the same shapes."""

    def __init__(self):
        self.kept = {}

    def get(self, name, abstract, make):
        like = jax.tree.map(lambda x: (x.shape, x.dtype), abstract)
        if name not in self.kept or self.kept[name][0] != like:
            self.kept.pop(name, None)  # before the new one takes its place
            self.kept[name] = like, make()
        return self.kept[name][1]

    def put(self, name, value):
        self.kept[name] = self.kept[name][0], value

    def drop(self):
        self.kept.clear()


class Step:
    """One step of training, its compilation and its times."""

    def __init__(self, config, assignments, *, devices=None):
        self.options = {}
        fields = []
        for name, value in assignments:
            if name == 'config':
                config = value
            elif name.startswith('xla.'):
                # The compiler takes booleans and numbers as such.
                self.options[name.removeprefix('xla.')] = option(value)
            else:
                fields.append((name, value))
        config = configs.override(configs.load(config), experiment.Experiment, fields)
        self.experiment = experiment.from_config(config)
        fields = self.experiment.data.source.assumed_fields()
        self.program = Program.make(
            self.experiment, epoch_examples=1_281_167, fields=fields, devices=devices
        )
        traced = self.program.trace()
        self.flops = self.program.model_flops(traced)
        self.lowered = traced.lower()
        self.images = self.experiment.data.batch_size
        self.seconds, self.processor = [], []
        self.loss = self.failed = None

    def compile(self):
        start = time.perf_counter()
        try:
            self.compiled = self.lowered.compile(compiler_options=self.options or None)
        except Exception as error:
            self.failed = f'not compiled: {reason(error)}'
        self.compile_seconds = time.perf_counter() - start

    def init(self):
        images = self.program.abstract_batch['images']
        place = jax.tree.map(lambda x: x.sharding, self.program.abstract_state)
        return jax.jit(lambda: self.program.step.init(images), out_shardings=place)()

    def make_batch(self):
        rng = np.random.default_rng(0)
        # Numbers small enough to be classes, whatever they stand for.
        arrays = self.program.abstract_batch
        batch = {k: rng.integers(0, 256, a.shape).astype(a.dtype) for k, a in arrays.items()}
        return sharding.put_batch(batch, self.program.mesh)

    def run(self, place, steps, *, warm_up):
        """Runs some steps and keeps their times; a failure, of memory for one, ends the row."""
        if self.failed:
            return
        try:
            batch = place.get('batch', self.program.abstract_batch, self.make_batch)
            for i in range(warm_up + steps):
                state = place.get('state', self.program.abstract_state, self.init)
                jax.block_until_ready(state)
                start, busy = time.perf_counter(), time.process_time()
                state, metrics = self.compiled(state, batch)
                jax.block_until_ready((state, metrics))
                if i >= warm_up:
                    self.seconds.append(time.perf_counter() - start)
                    self.processor.append(time.process_time() - busy)
                place.put('state', state)
            self.loss = float(metrics['loss'])
        except Exception as error:
            self.failed = f'not run: {reason(error)}'
            place.drop()
        finally:
            state = batch = None

    def profile(self, place, folder):
        """Traces three steps into `folder`, with the compiled program beside it."""
        folder.mkdir(parents=True, exist_ok=True)
        with gzip.open(folder / 'program.txt.gz', 'wt') as file:
            file.write(self.compiled.as_text())
        with jax.profiler.trace(str(folder)):
            self.run(place, 3, warm_up=0)

    def memory(self):
        """Bytes of a device that the compiled step needs, arguments and temporaries."""
        sizes = self.compiled.memory_analysis()
        results = sizes.output_size_in_bytes - sizes.alias_size_in_bytes
        return sizes.argument_size_in_bytes + results + sizes.temp_size_in_bytes

    def row(self):
        size = self.memory() / 2**30 if hasattr(self, 'compiled') else ''
        if self.failed:
            return f'{self.failed} ({size:.2f} GiB)' if size else self.failed
        median = np.median(self.seconds)
        devices = self.program.mesh.devices.flat
        rate = self.flops / median / len(devices)
        peak = peak_flops(devices[0].device_kind)
        taken = (devices[0].memory_stats() or {}).get('peak_bytes_in_use')
        cells = (
            f'{1e3 * median:.1f}',
            f'{1e3 * min(self.seconds):.1f}',
            f'{1e3 * min(self.processor):.1f}',
            f'{self.images / median:.1f}',
            f'{self.flops / 1e9:.1f}',
            f'{rate / 1e12:.1f}',
            f'{100 * rate / peak:.1f} %' if peak else 'unknown',
            f'{size:.2f}',
            f'{taken / 2**30:.2f}' if taken else 'unknown',
            f'{self.compile_seconds:.1f}',
            f'{self.loss:.4f}',
        )
        return ''.join(f'{cell:>10}' for cell in cells)


def option(value):
    if value.lower() in ('true', 'false'):
        return value.lower() == 'true'
    return int(value) if value.lstrip('-').isdigit() else value


if __name__ == '__main__':
    main()
