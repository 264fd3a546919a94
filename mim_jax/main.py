"""Command line of a run.

    python -m mim_jax.main --config=configs/NAME.py[:ARGUMENT] [--workdir=DIR] [--print_config]
        [--extend] [--stopped_status=N] [--config.any.field=value ...]

Without `--workdir` the run lives in runs/NAME, or runs/NAME_ARGUMENT. Starting again in a work
directory resumes it; `--extend` with a larger train.total_* lengthens it. `--stopped_status` is for
launchers: the exit status of a run that a signal stops before its end.
"""

import argparse
import contextlib
import os
import re
import sys
from pathlib import Path

from mim_jax import config as configs
from mim_jax.errors import UserError
from mim_jax.stopping import Stop


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status: 0, 2 for a mistake told in one sentence, or that
    of --stopped_status.
    """
    stop = Stop()
    try:
        # Signals are those of a program of its own, not of one that calls this.
        with stop.listening() if arguments is None else contextlib.nullcontext():
            return run(sys.argv[1:] if arguments is None else arguments, stop)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print('interrupted; the same command resumes from the last checkpoint', file=sys.stderr)
        return 130


def run(arguments: list[str], stop: Stop) -> int:
    """Parses, builds and trains; returns the exit status. Raises UserError for what the user can
    mend.
    """
    options, assignments = parse(arguments)
    _prepare_simulated_devices()
    # Importing JAX and friends takes a second or two; a mistyped option should not wait for it.
    from mim_jax import distributed, peers, storage, work_directory
    from mim_jax.experiment import Experiment, from_config

    config = configs.override(configs.load(options.config), Experiment, assignments)
    experiment = from_config(config)
    if options.print_config:
        print(config)
        return 0
    distributed.initialize()
    if distributed.is_joined():
        stop.joined()
    use_compilation_cache()
    from mim_jax.summary import summary
    from mim_jax.trainer import Trainer

    workdir = options.workdir or default_workdir(options.config)
    with peers.together(stop), storage.told(workdir):
        trainer = Trainer(experiment, workdir, extend=options.extend)
        stop.kept = trainer.kept
        with work_directory.locked(workdir):
            if not trainer.finished:  # what is written down is what was run
                step = trainer.found.step or 0
                work_directory.claim(workdir, experiment, after_step=step, extend=options.extend)
            if distributed.is_main() and not trainer.finished:
                text = summary(trainer, spec=options.config)
                with contextlib.suppress(OSError):  # a run outlives its terminal
                    print(text, flush=True)
            return options.stopped_status if trainer.train(stop) else 0


def default_workdir(spec: str) -> Path:
    """runs/NAME for NAME.py, runs/NAME_ARGUMENT for NAME.py:ARGUMENT."""
    file, _, argument = spec.partition(':')
    name = Path(file).stem + (f'_{argument}' if argument else '')
    return Path('runs') / re.sub(r'[^\w.+-]', '_', name)


def parse(arguments: list[str]) -> tuple[argparse.Namespace, list[tuple[str, str]]]:
    """Options, and the ("a.b.c", "text") pairs of `--config.a.b.c=text`."""
    if any(argument.split('=')[0] in ('-h', '--help') for argument in arguments):
        arguments = [*arguments, '--config=']
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.main', allow_abbrev=False, add_help=False
    )
    parser.add_argument('-h', '--help', nargs='?', const='', metavar='SECTION', help='this text')
    parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
    parser.add_argument('--workdir', metavar='DIR', help='default: runs/NAME[_ARGUMENT]')
    parser.add_argument('--print_config', action='store_true', help='print every field, do nothing')
    parser.add_argument('--extend', action='store_true', help='with more steps: lengthen the run')
    parser.add_argument(
        '--stopped_status',
        type=int,
        default=0,
        metavar='N',
        help='exit status of a run that a signal stops before its end (default: 0)',
    )
    options, rest = parser.parse_known_args(arguments)
    if options.help is not None:
        _print_help(parser, options.help)
        raise SystemExit(0)
    return options, configs.assignments(rest)


def _print_help(parser: argparse.ArgumentParser, section: str) -> None:
    from mim_jax import help as texts
    from mim_jax.experiment import Experiment

    if section:
        print(texts.section(Experiment, section))
    else:
        print(f'{parser.format_help()}\n{texts.sections(Experiment)}')


def _prepare_simulated_devices() -> None:
    """Gives XLA threads enough for simulated CPU devices, where XLA_FLAGS asks for some.

    Each blocks a thread of one pool in a collective. The pool is as large as the machine has cores,
    and devices that find no thread there wait for each other for ever.
    """
    flags = os.environ.get('XLA_FLAGS', '')
    found = re.search(r'xla_force_host_platform_device_count=(\d+)', flags)
    if found:
        os.environ.setdefault('NPROC', str(4 * int(found.group(1))))


def use_compilation_cache() -> None:
    """Keeps compiled programs for later runs, in JAX_COMPILATION_CACHE_DIR or ~/.cache."""
    import jax

    if not jax.config.jax_compilation_cache_dir:
        cache = Path(os.environ.get('XDG_CACHE_HOME', Path.home() / '.cache'))
        jax.config.update('jax_compilation_cache_dir', str(cache / 'mim_jax' / 'xla'))


if __name__ == '__main__':
    sys.exit(main())
