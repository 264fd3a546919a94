"""Command line for weight files.

    python -m mim_jax.weights random --config=configs/NAME.py --out=FILE [--seed=0]
        [--dtype=float16] [--config.any.field=value ...]
    python -m mim_jax.weights export --workdir=DIR --out=FILE [--dtype=float16]
    python -m mim_jax.weights import DIR --out=FILE [--dtype=float16]
    python -m mim_jax.weights inspect FILE

`random` makes a file of random weights for the config's frozen teacher, `export` writes the encoder
of a run of ours, `import` reads a Hugging Face directory (config.json, model.safetensors),
`inspect` lists what a safetensors file holds.
"""

import argparse
import json
import sys

from mim_jax.errors import UserError


def main(arguments=None) -> int:
    """Runs the command; returns the exit status: 0, or 2 for a mistake told in one sentence."""
    options, assignments = parse(sys.argv[1:] if arguments is None else arguments)
    try:
        if options.command == 'random':
            random(options.config, options.out, assignments, seed=options.seed, dtype=options.dtype)
        elif options.command == 'export':
            export(options.workdir, options.out, dtype=options.dtype)
        elif options.command == 'import':
            import_(options.directory, options.out, dtype=options.dtype)
        else:
            print(inspect(options.file))
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    return 0


def parse(arguments):
    """The options, and the ("a.b.c", "text") pairs of `--config.a.b.c=text`."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.weights', allow_abbrev=False)
    commands = parser.add_subparsers(dest='command', required=True)
    one = commands.add_parser('random', help="random weights for a config's frozen teacher")
    one.add_argument('--config', required=True, metavar='FILE.py')
    one.add_argument('--seed', type=int, default=0)
    two = commands.add_parser('export', help='the encoder of a run')
    two.add_argument('--workdir', required=True, metavar='DIR')
    three = commands.add_parser('import', help='the image encoder of a Hugging Face directory')
    three.add_argument('directory', metavar='DIR')
    for command in (one, two, three):
        command.add_argument('--out', required=True, metavar='FILE')
        command.add_argument('--dtype', choices=('float32', 'float16'), default='float32')
    commands.add_parser('inspect', help='names, shapes and metadata').add_argument('file')
    options, rest = parser.parse_known_args(arguments)
    assignments = []
    for argument in rest:
        name, equals, value = argument.partition('=')
        if options.command != 'random' or not name.startswith('--config.') or not equals:
            parser.error(f'unrecognized argument: {argument}')
        assignments.append((name.removeprefix('--config.'), value))
    return options, assignments


def random(config, out, assignments=(), *, seed=0, dtype='float32'):
    """Writes random weights for the teacher of the config file `config` to `out`."""
    import jax

    from mim_jax import config as configs
    from mim_jax.experiment import Experiment, from_config, make_inputs
    from mim_jax.targets import Teacher
    from mim_jax.weights import native

    filled = configs.override(configs.load(config), Experiment, list(assignments))
    experiment = from_config(filled)
    teacher = getattr(experiment.objective, 'target', None)
    if not isinstance(teacher, Teacher):
        raise UserError(f'--config={config}: its objective has no frozen teacher to make')
    inputs = make_inputs(experiment, num_classes=None)
    params = jax.jit(lambda key: teacher.init(key, inputs))(jax.random.key(seed))
    native.save(out, params, metadata=native.encoder_metadata(teacher.model), dtype=dtype)
    print(f'wrote random weights of seed {seed} to {out}')


def export(workdir, out, *, dtype='float32'):
    """Writes the encoder of the newest checkpoint in `workdir` to `out`."""
    from pathlib import Path

    from mim_jax.weights import native

    if not Path(workdir).is_dir():
        raise UserError(f'--workdir={workdir}: there is no such directory')
    model, params = native.load_encoder(workdir)
    native.save(out, params, metadata={'model': json.dumps(model)}, dtype=dtype)
    print(f'wrote the encoder of {workdir} to {out}')


def import_(directory, out, *, dtype='float32'):
    """Writes the image encoder of a Hugging Face `directory` to `out`, in our naming."""
    from mim_jax.weights import huggingface, native

    model, params = huggingface.load_encoder(directory)
    native.save(out, params, metadata=native.encoder_metadata(model), dtype=dtype)
    print(f'wrote the encoder of {directory} to {out}')
    print(f'its model section: {model}')


def inspect(path) -> str:
    """Names, dtypes, shapes, size and metadata of the safetensors file `path`, as text."""
    from mim_jax.weights import native

    tensors, metadata = native.read_header(path)
    rows = [(name, dtype, str(list(shape))) for name, (dtype, shape) in sorted(tensors.items())]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(2)]
    lines = [f'{n:<{widths[0]}}  {d:<{widths[1]}}  {s}' for n, d, s in rows]
    size = sum(_product(shape) for _, shape in tensors.values())
    lines.append(f'{len(rows)} tensors, {size:,} numbers')
    lines += [f'{key} = {value}' for key, value in sorted(metadata.items())]
    return '\n'.join(lines)


def _product(shape):
    total = 1
    for size in shape:
        total *= size
    return total


if __name__ == '__main__':
    sys.exit(main())
