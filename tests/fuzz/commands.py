"""Wrong command lines and configs: fields of every section with values of every sort."""

import dataclasses
import io
import typing
from contextlib import redirect_stderr

import jax
import numpy as np

from mim_jax import config as configs
from mim_jax import data, experiment, main
from mim_jax.evaluation import Evaluation
from mim_jax.objectives import OBJECTIVES
from mim_jax.program import Program
from mim_jax.ranges import Range
from mim_jax.trainer import Trainer
from tests.conftest import TEACHER

WRONG = (
    *('nan', 'inf', '-inf', '1e400', '-1e400', '1e300', '-1e300', '1e-320', '10**9'),
    *('-1', '0', '-0.0', '1', '2', '0.5', '1.5', '1000000000000', '9' * 40, '9' * 5000),
    *('', ' ', 'word', 'None', 'none', 'True', 'false', '1+2j', "b'1'", '{}', '{[]: 1}', '{1, 2}'),
    *(
        '()',
        '[]',
        '(1,)',
        '(1,2,3)',
        '1,2',
        '1,-2',
        '0,0',
        '(nan,)',
        '((1,2),)',
        '[[1]]',
        '1,',
        ',',
    ),
    *('(' * 300, '[' * 100_000, '-' * 100_000 + '1', '"', "'a", '\x00', 'a\nb', 'ü', '\udcff', '∞'),
    *('0x10', '1_000', '016', '1e5', '16.0', '16,16', '3,3', '64', '0.999999', '1.0000001'),
)
WRONG_KEYS = ('', '.', 'depht', 'name', 'x.y', 'lr', 'a' * 10_000, '\x00', 'ü', '0', '__class__')
WRONG_OBJECTS = (
    *(None, True, 0, -1, 3.5, float('nan'), float('inf'), 10**30, 'word', b'bytes', '', 1 + 2j),
    *((), [], {}, {'name': 'none'}, {'name': None}, {3: 4}, (None,), ('a', 1), [[1], [2]], {1, 2}),
    *(np.float32(1), np.array([1, 2]), np.int64(3), object, object(), lambda: 1, range(3)),
)
WRONG_FILES = (
    *('1 / 0', 'def get_config(', 'import no_such_module', 'raise SystemExit', 'exit(3)', ''),
    *('get_config = 3', 'def get_config():\n    pass', 'def get_config(a, b):\n    pass'),
    'def get_config():\n    raise KeyError',
    'def get_config():\n    raise SystemExit("word")',
    'def get_config():\n    return get_config()',
    'def get_config():\n    return {"seed": 1}',
    'def get_config():\n    return get_config',
    'from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict()',
    'from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({"seed": 1})',
    'from ml_collections import ConfigDict\ndef get_config():\n    return ConfigDict({"model": 3})',
    'raise ValueError("a\\nb")',
    'raise ExceptionGroup("g", [ValueError("x")])',
    '\x00',
    '\udcff',
)
TINY = (
    *('data.image_size=32', 'data.batch_size=16', 'data.crop.mode=none', 'model.patch_size=8'),
    *('model.width=32', 'model.depth=2', 'model.heads=2', 'train.total_steps=4'),
    *('data.source.num_train=64', 'data.source.num_test=32', 'train.ema.decay=0.9'),
)


def commands(folder):
    """Command lines from parsing to the objects of a run, nothing compiled."""
    return lambda rng: _case(rng, folder)


def runs(folder):
    """Values that are in their ranges, several at once; what is accepted is traced, so that a
    combination is told before the compiler finds it.
    """

    def case(rng):
        name, config = _base(rng)
        leaves = list(_leaves(config, experiment.Experiment))
        chosen = [leaves[i] for i in rng.choice(len(leaves), rng.integers(1, 4), replace=False)]
        pairs = [(path, _inside(rng, kind)) for path, kind in chosen]
        return f'{name} {pairs}', lambda: _traced(config, pairs)

    return case


def _case(rng, folder):
    kind = rng.choice(['field', 'field', 'field', 'fields', 'key', 'object', 'file', 'argument'])
    return {
        'field': lambda: _fields(rng, folder, 1),
        'fields': lambda: _fields(rng, folder, int(rng.integers(2, 5))),
        'key': lambda: _key(rng, folder),
        'object': lambda: _object(rng, folder),
        'file': lambda: _file(rng, folder),
        'argument': lambda: _argument(rng),
    }[kind]()


def _base(rng):
    """A tiny config of one of the objectives, and its name."""
    name = str(rng.choice(sorted(OBJECTIVES)))
    config = experiment.default_config(name)
    pairs = [tuple(pair.split('=')) for pair in TINY]
    small = [('width', '16'), ('depth', '1'), ('heads', '2')]
    decoders = ('mae', 'beyondmasking', 'croco', 'dmjd', 'hpm', 'latentmim', 'lut', 'moca', 'nim')
    if name in decoders:
        pairs += [(f'objective.decoder.{key}', value) for key, value in small]
    if name == 'moca':
        pairs += [('objective.dense_layer', '1'), ('objective.words.border', '1')]
    if name == 'latentmim':
        pairs += [('objective.hidden', '16'), ('objective.masking.ratio', '0.6')]
    if name == 'de3':
        for part in ('model', 'decoder'):
            pairs += [(f'objective.denoiser.{part}.{key}', value) for key, value in small]
        pairs.append(('objective.denoiser.model.patch_size', '8,8'))
    if name in ('ijepa', 'dmtjepa', 'salt'):
        pairs += [(f'objective.predictor.{key}', value) for key, value in small]
        counts = {'short': (4, 8), 'long': (2, 12)} if name == 'salt' else {}
        for union, (context, predicted) in counts.items():
            pairs.append((f'objective.masking.{union}.num_context', str(context)))
            pairs.append((f'objective.masking.{union}.num_predicted', str(predicted)))
        if not counts:
            pairs.append(('objective.masking.num_context', '4'))
    if name in ('dtm', 'maskalign', 'salt', 'vqkd', 'beitv2'):
        pairs += [(f'objective.target.model.{key}', str(value)) for key, value in TEACHER.items()]
    if name in ('dtm', 'beitv2'):
        pairs += [('objective.masking.num_masked', '6'), ('objective.masking.min_block', '2')]
    return name, configs.override(config, experiment.Experiment, pairs)


def _leaves(section, cls, path=''):
    """(path, kind) of every value of a config, options as they are chosen."""
    for field, kind in configs.fields(cls):
        where = f'{path}{field.name}'
        options = field.metadata.get('options')
        if options:
            yield f'{where}.name', typing.Literal[tuple(options)]
            kind = options[section[field.name]['name']]
        if dataclasses.is_dataclass(kind):
            yield from _leaves(section[field.name], kind, f'{where}.')
        else:
            yield where, kind


def _fields(rng, folder, count):
    name, config = _base(rng)
    leaves = list(_leaves(config, experiment.Experiment))
    chosen = [leaves[i] for i in rng.choice(len(leaves), count, replace=False)]
    pairs = [(path, _value(rng, kind)) for path, kind in chosen]
    return f'{name} {pairs}', lambda: _accepted(config, pairs, folder)


def _value(rng, kind):
    """A value for a field: at and beyond the bounds of its range, one of its options, or any."""
    ranges = [found for found in _parts(kind) if isinstance(found, Range)]
    literals = [
        a for k in _parts(kind) if typing.get_origin(k) is typing.Literal for a in k.__args__
    ]
    if literals and rng.random() < 0.7:
        return str(rng.choice(literals))
    if rng.random() < 0.3:
        return _inside(rng, kind)
    if ranges and rng.random() < 0.5:
        bounds = [b for b in (ranges[0].low, ranges[0].high) if b is not None]
        if bounds:
            bound = bounds[rng.integers(len(bounds))]
            return str(bound + (0, 1, -1, 0.5, -1e-9, 1e-9)[rng.integers(6)])
    return WRONG[rng.integers(len(WRONG))]


def _inside(rng, kind):
    """A value that the field alone may have: small numbers more often than large ones."""
    ranges = [found for found in _parts(kind) if isinstance(found, Range)]
    literals = [
        a for k in _parts(kind) if typing.get_origin(k) is typing.Literal for a in k.__args__
    ]
    if type(None) in _parts(kind) and rng.random() < 0.2:
        return 'none'
    if literals:
        return str(rng.choice(literals))
    if bool in _parts(kind):
        return str(rng.choice(['true', 'false']))
    if not ranges:
        return str(rng.choice(['none', 'all', 'mean', 'encoder', 'map', 'test']))
    low, high = ranges[0].low or 0, min(ranges[0].high or 100, 100)
    number = low + (high - low) * rng.random() ** 3
    several = any(typing.get_origin(k) is tuple for k in _parts(kind))
    count = int(rng.integers(1, 4)) if several else 1
    return ','.join([str(round(number) if int in _parts(kind) else number)] * count)


def _parts(kind):
    yield kind
    if typing.get_origin(kind) is not typing.Literal:
        for inner in typing.get_args(kind):
            yield from _parts(inner)


def _key(rng, folder):
    name, config = _base(rng)
    path = [*_leaves(config, experiment.Experiment)]
    parts = path[rng.integers(len(path))][0].split('.')
    wrong = WRONG_KEYS[rng.integers(len(WRONG_KEYS))]
    at = int(rng.integers(len(parts) + 1))
    parts = parts[:at] + [wrong] + parts[at + int(rng.integers(2)) :]
    pairs = [('.'.join(parts), WRONG[rng.integers(len(WRONG))])]
    return f'{name} {pairs}'[:300], lambda: _accepted(config, pairs, folder)


def _object(rng, folder):
    """A config file that has put anything anywhere."""
    name, config = _base(rng)
    config = config.copy_and_resolve_references().unlock()
    leaves = list(_leaves(config, experiment.Experiment))
    parts = leaves[rng.integers(len(leaves))][0].split('.')
    parts = parts[: int(rng.integers(1, len(parts) + 1))]
    section = config
    for part in parts[:-1]:
        section = section[part]
    value = WRONG_OBJECTS[rng.integers(len(WRONG_OBJECTS))]

    def act():
        with section.ignore_type():
            section[parts[-1]] = value
        return _built(config, folder)

    return f'{name} config.{".".join(parts)} = {value!r}', act


def _file(rng, folder):
    body = WRONG_FILES[rng.integers(len(WRONG_FILES))]
    path = folder / 'wrong.py'
    spec = f'{path}{("", ":argument")[rng.integers(2)]}'

    def act():
        path.write_bytes(body.encode('utf-8', 'surrogateescape'))
        return _built(configs.load(spec), folder)

    return f'a file {body!r}', act


def _argument(rng):
    given = (
        *('--config', '--config=', '--config=x.py', '--config=/', '--config.seed', '--config.=1'),
        *(
            '--config.seed=1',
            '--workdir',
            '--nothing',
            '--help=no.such',
            '--help=model.depth',
            '-x',
        ),
        *('word', '', '--', '=', '--config=\x00.py', '--config=' + 'a' * 5000, '--topology=v5e'),
    )
    arguments = [given[i] for i in rng.integers(len(given), size=rng.integers(1, 5))]

    def act():
        with redirect_stderr(io.StringIO()) as said:
            try:
                options, pairs = main.parse(list(arguments))
                configs.override(configs.load(options.config), experiment.Experiment, pairs)
            except SystemExit as error:
                if error.code != 2 or 'error: ' not in said.getvalue():
                    raise RuntimeError(f'exit {error.code}: {said.getvalue()}') from None
                return 'told by the parser'
        return 'accepted'

    return f'arguments {arguments}'[:300], act


def _accepted(config, pairs, folder):
    configs.override(config, experiment.Experiment, pairs)
    return _built(config, folder)


def _built(config, folder):
    """Everything that a run does before it writes."""
    workdir = folder / 'run'
    try:
        jax.tree.leaves(Trainer(experiment.from_config(config), workdir).program.abstract_state)
    except SystemExit as error:
        raise RuntimeError(f'exit {error.code}') from None
    finally:
        if workdir.exists():
            raise RuntimeError('something was written')
    return 'accepted'


def _traced(config, pairs):
    """As `_built`, but without weights of a teacher, up to the traced step."""
    configs.override(config, experiment.Experiment, pairs)
    run = experiment.from_config(config)
    source = data.make_source(run.data, split=run.data.split)
    program = Program.make(run, epoch_examples=len(source), fields=source.fields)
    Evaluation(program, source)
    program.trace()
    return 'traced'
