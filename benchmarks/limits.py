"""What a training step asks for, and the images per second that a device could make of it at most.

    python benchmarks/limits.py [--batch=256] [--decode_ms=1.95] [--device=NAME,TFLOPS,GBPS,GIB ...]
        [--model='NAME=CONFIG field=value ...' ...]

Counts by shapes: nothing is compiled or run, no weights are read, and no accelerator is needed. The
tables are Markdown, those of docs/performance.md. `--device` adds a device by its rate of bfloat16
products, its memory's rate and size; `--model` replaces the models.

A loop of matching, whose length is drawn, counts as the mean of its draws. `at most` is the lower
of two: products at the device's rate, and bytes at that of its memory. Its bytes are operands and
results of every product once, with attention's and morphing's squares kept on chip, and parameters,
gradients and the optimiser's state read and written once: norms, activations and residual sums are
taken to be fused into the products, which no compiler does throughout.
"""

import argparse
import collections
import dataclasses
import re

import jax

from mim_jax import assembly, experiment
from mim_jax import config as configs
from mim_jax.flops import products
from mim_jax.logs import peak_flops
from mim_jax.preflight.chips import chip
from mim_jax.preflight.compiled import ASSUMED_EPOCH
from mim_jax.program import Program, everywhere

MODELS = (
    'DTM, ViT-S=configs/dtm_vits.py',
    'DTM, ViT-B=configs/dtm_vitb.py',
    'DTM, ViT-L=configs/dtm_vitl.py',
    'MAE, ViT-B=configs/mae.py',
    'MAE, ViT-L=configs/mae.py model.width=1024 model.depth=24 model.heads=16',
)
# The first pattern found in a product's path names its part.
PARTS = (
    ('teacher', r'target'),
    ('averages', r'morphing.*/morph/'),
    ('grouping', r'morphing'),
    ('head or decoder', r'student.*(Head|Decoder)'),
    ('backward', r'transpose\(.*student'),
    ('forward', r'student'),
    ('elsewhere', r''),
)
# FLOP/s of bfloat16 products, bytes/s of memory, bytes of memory. Two were measured, see
# docs/performance.md; the others are published (cloud.google.com/tpu/docs).
MEASURED = {
    'H100 (measured)': (676.5e12, 2970e9, 80e9),
    'H200 (measured)': (790e12, 4300e9, 141e9),
}
PUBLISHED = {'TPU v4': 1200e9, 'TPU v5e': 819e9, 'TPU v6e': 1638e9}
REMAT = ('none', 'dots', 'full')
IMAGES = 251  # of the batch that is counted: a prime, of which no other dimension is a multiple


@dataclasses.dataclass
class Counts:
    """What a step asks for; all but the last two is of one image.

    Attributes:
        flops: of products, by part.
        moved: bytes of products.
        sent: bytes from the host to the device.
        kept: bytes that the forward pass leaves to the backward one, by rematerialisation.
        repeated: bytes of one block, which rematerialisation holds once more.
        state: bytes of parameters, teacher, optimiser and gradients.
        updated: bytes that the update reads and writes.
    """

    flops: dict[str, float]
    moved: float
    sent: float
    kept: dict[str, float]
    repeated: float
    state: int
    updated: int


def make_program(config, fields):
    common = [('train.total_steps', '1000'), ('data.batch_size', str(IMAGES))]
    config = configs.override(configs.load(config), experiment.Experiment, common + fields)
    run = experiment.from_config(config)
    fields = run.data.source.assumed_fields()
    return Program.make(run, epoch_examples=ASSUMED_EPOCH, fields=fields, devices=jax.devices()[:1])


def bytes_of(tree):
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def rematerialised(program, kind):
    """The step of a program, every network of it rematerialised in that way."""
    run = everywhere(program.run, remat=kind)
    fields = program.objective.inputs.fields
    objective = assembly.make_objective(run, fields=fields, clock=program.clock)
    return dataclasses.replace(program.step, objective=objective)


def kept(step, state, batch):
    """Bytes of an image that the gradient of a step's loss takes from its forward pass."""

    def forward(state, batch):
        batch, key = step.drawn(state, batch)
        batch = step.augment(batch['keys'], batch)

        def loss(params):
            variables = {**state.variables, 'params': params}
            return step.objective.loss(variables, batch, key, state.step)[0]

        return jax.vjp(loss, state.variables['params'])[1]

    left = jax.tree.leaves(jax.eval_shape(forward, state, batch))
    return bytes_of([x for x in left if x.size % IMAGES == 0]) / IMAGES


def count(config, fields):
    program = make_program(config, fields)
    state, batch = program.abstract_state, program.abstract_batch
    steps = {kind: rematerialised(program, kind) for kind in REMAT}
    morphing = getattr(program.run.objective, 'morphing', None)
    loop_steps = (1 + morphing.max_steps) / 2 if morphing else 1
    flops, moved = collections.Counter(), 0
    for product in products(jax.make_jaxpr(steps['none'])(state, batch), loop_steps=loop_steps):
        part = next(name for name, pattern in PARTS if re.search(pattern, product.path))
        flops[part] += product.flops / IMAGES
        moved += product.moved / IMAGES
    params = bytes_of(state.variables['params'])
    learned = params + bytes_of(state.opt_state)
    left = {kind: kept(step, state, batch) for kind, step in steps.items()}
    return Counts(
        flops=flops,
        moved=moved,
        sent=bytes_of(batch) / IMAGES,
        kept=left,
        repeated=left['none'] / program.run.model.depth,
        state=bytes_of(state) + params,
        updated=2 * learned + params,
    )


def rates(counts, batch, device):
    """Images per second of its products and of its bytes, on a device."""
    flops, bandwidth, _ = device
    by_products = flops / sum(counts.flops.values())
    return by_products, bandwidth / (counts.moved + counts.updated / batch)


def table(*rows):
    for i, row in enumerate(rows):
        print('| ' + ' | '.join(map(str, row)) + ' |')
        if i == 0:
            print('| --- ' * len(row) + '|')
    print(flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--batch', type=int, default=256)
    parser.add_argument('--decode_ms', type=float, default=1.95, help='of a core, for one image')
    parser.add_argument('--device', action='append', default=[])
    parser.add_argument('--model', action='append', default=[])
    options = parser.parse_args()
    devices = dict(MEASURED)
    for name, bandwidth in PUBLISHED.items():
        devices[f'{name} (published)'] = peak_flops(name), bandwidth, chip(name).memory
    for text in options.device:
        name, *numbers = text.split(',')
        tera, giga, gib = map(float, numbers)
        devices[name] = 1e12 * tera, 1e9 * giga, 2**30 * gib

    found = {}
    for text in options.model or MODELS:
        name, _, words = text.partition('=')
        config, *fields = words.split()
        fields = [tuple(field.split('=', 1)) for field in fields]
        found[name] = count(config, fields)

    parts = ['forward', 'backward', 'head or decoder', 'teacher', 'grouping', 'averages']
    if any('elsewhere' in c.flops for c in found.values()):
        parts.append('elsewhere')
    parts.append('all')
    print('GFLOP of matrix products, an image:\n')
    rows = []
    for name, c in found.items():
        flops = {**c.flops, 'all': sum(c.flops.values())}
        rows.append((name, *(f'{flops.get(part, 0) / 1e9:.2f}' for part in parts)))
    table(('', *parts), *rows)
    print(f'Bytes; an image but for the state, MB; batch {options.batch}:\n')
    table(
        ('', 'from the host', 'products', 'update', *(f'kept, `{r}`' for r in REMAT), 'state'),
        *(
            (
                name,
                f'{c.sent / 1e6:.3f}',
                f'{c.moved / 1e6:.0f}',
                f'{c.updated / options.batch / 1e6:.1f}',
                *(f'{c.kept[r] / 1e6:.1f}' for r in REMAT),
                f'{c.state / 1e6:,.0f}',
            )
            for name, c in found.items()
        ),
    )
    print('Images/s at most (bound by); largest batch by what is kept, `none` to `full`:\n')
    rows = []
    for name, c in found.items():
        cells = [name]
        for device in devices.values():
            by_products, by_bytes = rates(c, options.batch, device)
            bound = 'products' if by_products < by_bytes else 'bytes'
            room = max(0, device[2] - c.state)
            batch = room // c.kept['none'], room // (c.kept['full'] + c.repeated)
            cells.append(
                f'{min(by_products, by_bytes):,.0f} ({bound}); {batch[0]:,.0f} to {batch[1]:,.0f}'
            )
        rows.append(cells)
    table(('', *devices), *rows)
    print(f'Cores that decode for that ({options.decode_ms} ms an image); MB/s from the host:\n')
    rows = []
    for name, c in found.items():
        cells = [name]
        for device in devices.values():
            rate = min(rates(c, options.batch, device))
            cells.append(f'{rate * options.decode_ms / 1e3:.1f}; {rate * c.sent / 1e6:,.0f}')
        rows.append(cells)
    table(('', *devices), *rows)


if __name__ == '__main__':
    main()
