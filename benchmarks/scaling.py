"""What each chip computes, holds and sends as chips are added: weak scaling, also without them.

    python benchmarks/scaling.py --simulated=8 [--config=configs/quickstart.py] [--slices=1,2]
    python benchmarks/scaling.py --topology=v5e:2x2,v5e:2x4,v5e:4x4 [--config.any.field=value ...]
    python benchmarks/scaling.py --topology=h100:2,h100:4,h100:8
    python benchmarks/scaling.py --batch=256 --config=configs/dtm_vitb.py

Every chip has `--batch` images. Parameters are split over the chips of a slice (`mesh.fsdp`), and
slices hold the same ones (`mesh.data`). The step is compiled for simulated CPU devices, for slices
of TPUs or hosts of GPUs that need not be there (docs/preflight.md), or for 1, 2, 4, ... of the
devices at hand; only these run it, and their rows end with times and the share of a device's rate
in the first row that each keeps. Nothing is read: images and teacher are random.

`sent` is counted in the compiled program as `python -m mim_jax.preflight` does it, MFLOP by XLA of
one chip's program, where the body of a loop counts once (not for GPUs that are not there).
"""

import argparse
import sys

import jax
import numpy as np
from timing import WARM_UP
from train_step import Place, Step, pair

from mim_jax.errors import UserError
from mim_jax.preflight import collectives, topology

TITLES = ('chips', 'mesh', 'batch', 'MFLOP', 'memory, MiB', *collectives.KINDS, 'sent, MiB')
TIMES = ('ms/step', 'images/s', 'kept')


def numbers(text):
    found = [int(number) for number in text.split(',')]
    if min(found) < 1:
        raise argparse.ArgumentTypeError(f'{text}: at least 1 each')
    return found


def sizes(available, slices):
    """Powers of two up to the devices there are, as far as they divide into slices."""
    powers = [2**power for power in range(available.bit_length())]
    return [size for size in powers if size % slices == 0]


def places(options):
    """The devices of every row, and the number of their slices."""
    for slices in options.slices:
        for name in options.topology or ():
            yield topology.devices(name, slices=slices), slices
        if not options.topology:
            for size in sizes(jax.device_count(), slices):
                yield jax.devices()[:size], slices


def counted(step):
    """Cells of what a compiled step takes of a chip."""
    chips, images = step.program.mesh.size, step.images
    axes = ', '.join(f'{axis} {n}' for axis, n in step.program.mesh.shape.items() if n > 1)
    sent = collectives.sent(step.compiled.as_text())
    flops = (step.compiled.cost_analysis() or {}).get('flops', 0)
    cells = [f'{chips:,}', axes or 'none', f'{images:,}', f'{flops / 1e6:,.0f}' if flops else '']
    cells.append(f'{step.memory() / 2**20:,.1f}')
    each = [sent.get(kind, 0) for kind in collectives.KINDS]
    return cells + [f'{size / 2**20:,.2f}' if size else '' for size in (*each, sum(each))]


def line(cells):
    return '| ' + ' | '.join(cells) + ' |'


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument('--config', default='configs/quickstart.py')
    parser.add_argument('--batch', type=int, default=8, help='images of each chip')
    parser.add_argument('--simulated', type=int, help='so many CPU devices')
    parser.add_argument('--topology', type=lambda text: text.split(','), help='v5e:2x2,v5e:2x4,...')
    parser.add_argument('--slices', type=numbers, default=[1], help='1,2,...: with so many each')
    parser.add_argument('--steps', type=int, default=20, help='timed, of the devices at hand')
    options, rest = parser.parse_known_args()
    simulated = options.simulated or options.topology
    if simulated:
        jax.config.update('jax_platforms', 'cpu')
        jax.config.update('jax_num_cpu_devices', options.simulated or 1)

    asked = [pair(argument.removeprefix('--config.')) for argument in rest]
    rows = list(places(options))
    if not rows:
        raise UserError(f'--slices: no part of {jax.device_count()} devices divides into them.')
    kind = rows[0][0][0].device_kind
    print(f'{options.config} {" ".join(rest)}: {kind}, jax {jax.__version__}\n')
    titles = TITLES if simulated else TITLES + TIMES
    print(f'{line(titles)}\n{"| --- " * len(titles)}|', flush=True)
    place, one = Place(), None
    for devices, slices in rows:
        size = len(devices)
        assignments = [
            ('train.total_steps', '1000'),
            ('data.batch_size', str(options.batch * size)),
            ('mesh.data', str(slices)),
            ('mesh.fsdp', str(size // slices)),
        ]
        step = Step(options.config, assignments + asked, devices=devices)
        step.compile()
        cells = [] if step.failed else counted(step)
        if not simulated:
            step.run(place, options.steps, warm_up=WARM_UP)
            place.drop()
        if step.failed:
            print(line([f'{size:,}', step.failed]), flush=True)
            continue
        if not simulated:
            seconds = np.median(step.seconds)
            rate = step.images / seconds
            one = one or rate / size
            cells += [f'{1e3 * seconds:.1f}', f'{rate:,.0f}', f'{rate / size / one:.0%}']
        print(line(cells), flush=True)


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        sys.exit(f'error: {error}')
