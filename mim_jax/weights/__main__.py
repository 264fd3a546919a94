"""Command line for weight files.

    python -m mim_jax.weights random  --config=configs/NAME.py --out=FILE [--seed=0]
        [--dtype=float16] [--config.any.field=value ...]
    python -m mim_jax.weights import  FILE_OR_DIR --out=DIR [--dtype=float16]
        [--model.heads=6 ...]
    python -m mim_jax.weights export  --workdir=DIR [--step=N] | --weights=FILE_OR_DIR
        --out=FILE_OR_DIR [--to=mim_jax|timm|huggingface] [--dtype=float16] [--image_size=224]
    python -m mim_jax.weights inspect FILE_OR_DIR [--model.heads=6 ...]

`random` makes a file of random weights for the config's frozen teacher. `import` reads another
project's weights (CLIP, DINO, DINOv2, MAE, BEiT, data2vec-vision, DeiT, ViT) into a new folder.
`export` writes an encoder of ours, of a run or of a file, as a file of ours, or as a folder that
timm or `transformers` reads. `inspect` says what a file or a work directory holds, and whether it
could be imported.
"""

import argparse
import dataclasses
import json
import math
import sys

from mim_jax import config as configs
from mim_jax.errors import UserError

SECTIONS = {'random': '--config.', 'import': '--model.', 'inspect': '--model.'}


def main(arguments=None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a mistake told in one sentence."""
    options, assignments = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.command == 'random':
            random(options.config, options.out, assignments, seed=options.seed, dtype=options.dtype)
        elif options.command == 'export':
            export(options)
        elif options.command == 'import':
            import_(options.source, options.out, assignments, dtype=options.dtype)
        else:
            print(inspect(options.file, assignments))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def parse(arguments):
    """The options, and the ("a.b.c", "text") pairs of `--config.a.b.c=text` or `--model.a=text`."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.weights', allow_abbrev=False)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('random', help="random weights for a config's frozen teacher")
    one.add_argument('--config', required=True, metavar='FILE.py')
    one.add_argument('--seed', type=int, default=0)
    two = commands.add_parser('export', help='an encoder of ours, for us or for others')
    source = two.add_mutually_exclusive_group(required=True)
    source.add_argument('--workdir', metavar='DIR')
    source.add_argument('--weights', metavar='FILE_OR_DIR')
    two.add_argument('--step', type=int, metavar='N', help='of a work directory (default: newest)')
    two.add_argument('--to', choices=('mim_jax', 'timm', 'huggingface'), default='mim_jax')
    two.add_argument('--image_size', type=image_size, metavar='SIDE|HEIGHT,WIDTH')
    three = commands.add_parser('import', help="another project's weights")
    three.add_argument('source', metavar='FILE_OR_DIR')
    for command in (one, two, three):
        command.add_argument('--out', required=True)
        command.add_argument('--dtype', choices=('float32', 'float16'), default='float32')
    four = commands.add_parser('inspect', help='what a file holds')
    four.add_argument('file', metavar='FILE_OR_DIR')
    options, rest = parser.parse_known_args(arguments)
    if options.command == 'export' and options.weights and options.step is not None:
        two.error('--step needs --workdir, which has checkpoints.')
    return options, configs.assignments(rest, prefix=SECTIONS.get(options.command, ''))


def random(config, out, assignments=(), *, seed=0, dtype='float32'):
    """Writes random weights for the teacher of the config file `config` to `out`."""
    import jax

    from mim_jax.assembly import make_inputs
    from mim_jax.experiment import Experiment, from_config
    from mim_jax.targets import Teacher
    from mim_jax.weights import native

    filled = configs.override(configs.load(config), Experiment, list(assignments))
    experiment = from_config(filled)
    teacher = getattr(experiment.objective, 'target', None)
    if not isinstance(teacher, Teacher):
        raise UserError(f'--config={config}: its objective has no frozen teacher to make')
    inputs = make_inputs(experiment, fields=())
    bound = teacher.bind(experiment.model, inputs)
    params = jax.jit(bound.init)(jax.random.key(seed))
    native.save(out, params, metadata=native.encoder_metadata(teacher.model), dtype=dtype)
    print(f'wrote random weights of seed {seed} to {out}')


def export(options):
    """Writes the encoder of a run's checkpoint, or of a file, to `options.out`."""
    from mim_jax.weights import exporting, huggingface_export, timm_export

    given = options.workdir or options.weights
    if options.workdir:
        encoder = exporting.of_run(given, step=options.step)
    else:
        encoder = exporting.of_file(given)
    if options.image_size:
        encoder = exporting.sized(encoder, options.image_size)
    if options.to == 'mim_jax':
        exporting.to_mim_jax(encoder, options.out, dtype=options.dtype)
        print(f'wrote the encoder of {given} to {options.out}')
        return
    writer = {'timm': timm_export, 'huggingface': huggingface_export}[options.to]
    held_by, left_out = writer.export(encoder, options.out, dtype=options.dtype)
    without = f', without {", ".join(left_out)}, for which it has no place' if left_out else ''
    print(f'wrote the encoder of {given} to {options.out}, as {held_by}{without}')
    if options.to == 'huggingface' and huggingface_export.pooler_is_fresh(encoder.model):
        print('its pooler_output is untrained, for we have no pooler: take last_hidden_state')


def image_size(text):
    """(height, width) of "224" or "224,192"."""
    sizes = [int(part) for part in text.split(',')]
    if len(sizes) > 2 or min(sizes) < 1:
        raise ValueError(text)
    return sizes[0], sizes[-1]


def import_(source, out, assignments=(), *, dtype='float32'):
    """Writes what the file or folder `source` of another project holds to the new folder `out`."""
    from mim_jax.weights import importing

    found = importing.import_(source, out, overrides=_fields(assignments), dtype=dtype)
    print(f'wrote {found.described()} to {out}')
    for line in (found.said_of_assumptions(), found.said_of_left_out()):
        if line:
            print(line)
    print(found.config_entry(out))


def inspect(path, assignments=()) -> str:
    """What the file or folder `path`, ours or another project's, holds, as text."""
    from mim_jax import layout
    from mim_jax.weights import encoders, importing, native, reading

    file = encoders.encoder_file(path)
    if layout.checkpoints(file).is_dir():
        return _of_run(file)
    if file.suffix == '.safetensors' and file.is_file():
        tensors, metadata = native.read_header(file)
        if metadata.get('format') == native.FORMAT:
            return _listed(tensors, metadata)
    found = importing.find(reading.read(path), overrides=_fields(assignments), what=str(path))
    return found.report()


def _of_run(workdir):
    """The variables of a run's newest checkpoint, and what its encoder is."""
    import jax

    from mim_jax import checkpoints, layout
    from mim_jax.weights import native

    config = layout.read_config(workdir)
    variables, step = checkpoints.abstract_variables(workdir)
    flat = jax.tree.map(lambda x: (str(x.dtype), x.shape), native.flatten(variables))
    data = config['data']
    stated = {name: json.dumps(data.get(name)) for name in ('image_size', 'mean', 'std')}
    stated |= {'model': json.dumps(config['model']), 'objective': config['objective'].get('name')}
    saved = checkpoints.saved_steps(workdir)
    return f'{_listed(flat, stated)}\nstep = {step}, of checkpoints of {saved}'


def _listed(tensors, metadata):
    """Names, dtypes, shapes, size and metadata of a file of ours, or the like."""
    rows = [(name, dtype, str(list(shape))) for name, (dtype, shape) in sorted(tensors.items())]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f'{n:<{widths[0]}}  {d:<{widths[1]}}  {s}' for n, d, s in rows]
    size = sum(math.prod(shape) for _, shape in tensors.values())
    lines.append(f'{len(rows)} tensors, {size:,} numbers')
    lines += [f'{key} = {value}' for key, value in sorted(metadata.items())]
    return '\n'.join(lines)


def _fields(assignments):
    """Fields of the ViT given as ("heads", "6") pairs, each read as the type of its field."""
    from mim_jax import config
    from mim_jax.models.vit import ViT

    filled = config.override(config.written(ViT()), ViT, list(assignments))
    model = dataclasses.asdict(config.build(ViT, filled, path='model'))
    return {name: model[name] for name, _ in assignments}


if __name__ == '__main__':
    sys.exit(main())
