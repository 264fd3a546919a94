"""What a run would take: its true step compiled, for TPUs or GPUs that need not be there.

    python -m mim_jax.preflight --config=configs/NAME.py[:ARGUMENT] [--topology=v5e:16x16|h100:8]
        [--slices=1] [--memory=GIB] [--fit] [--parameters] [--row] [--config.any.field=value ...]

Reads no data and writes nothing. The exit status is 1 where the step does not fit the memory of a
chip, and 2 for a mistake told in one sentence.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from mim_jax import config as configs
from mim_jax.errors import UserError

REMAT = ('none', 'dots', 'full')  # of `model.remat`, by the memory that they save


def main(arguments: list[str] | None = None) -> int:
    """Runs the command; returns the exit status."""
    try:
        return run(sys.argv[1:] if arguments is None else arguments)
    except UserError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2


def run(arguments: list[str]) -> int:
    """Parses, compiles and reports. Raises UserError for what the user can mend."""
    parser = argparse.ArgumentParser(prog='python -m mim_jax.preflight', allow_abbrev=False)
    parser.add_argument('--config', required=True, metavar='FILE.py[:ARGUMENT]')
    parser.add_argument(
        '--topology',
        metavar='NAME',
        help='a TPU slice, v5e:4x4, or GPUs of a host, h100:8 (default: the devices at hand)',
    )
    parser.add_argument('--slices', type=int, default=1, help='so many of them, slices or hosts')
    parser.add_argument(
        '--memory', type=float, metavar='GIB', help='of a chip, that a step may fill'
    )
    parser.add_argument(
        '--parameters', action='store_true', help='every array with its shape and sharding'
    )
    parser.add_argument(
        '--fit', action='store_true', help='the least model.remat with which the step fits'
    )
    parser.add_argument('--row', action='store_true', help='a row of a Markdown table, no more')
    options, rest = parser.parse_known_args(arguments)
    if options.slices < 1 or (options.slices > 1 and not options.topology):
        raise UserError(f'--slices={options.slices}: a number of slices of a --topology, from 1.')
    if options.memory is not None and not 0 < options.memory < float('inf'):
        raise UserError(f'--memory={options.memory}: GiB of one chip, more than 0.')
    if options.topology:
        # The devices at hand play no part: keep JAX from claiming them.
        os.environ['JAX_PLATFORMS'] = 'cpu'
        # A compiler tells of drivers that are missing and of minutes gone by; what is wrong with a
        # program comes as an exception.
        os.environ.setdefault('TF_CPP_MIN_LOG_LEVEL', '3')
    from mim_jax.experiment import Experiment, from_config
    from mim_jax.preflight import compiled, report, topology

    assignments = configs.assignments(rest)
    asked = from_config(configs.override(configs.load(options.config), Experiment, assignments))
    runs = [asked]
    if options.fit:
        models = [dataclasses.replace(asked.model, remat=remat) for remat in REMAT]
        runs = [dataclasses.replace(asked, model=model) for model in models]
    devices = None
    if options.topology:
        devices = topology.devices(options.topology, slices=options.slices)
    for tried in runs:
        found = compiled.compiled(
            tried, devices=devices, memory=options.memory and options.memory * 2**30
        )
        if options.fit and found.fits is None:
            raise UserError(f'--fit: the memory of {found.kind} is not known; give it by --memory.')
        if options.row:
            print(report.row(found, title=Path(options.config).stem), flush=True)
        elif options.fit:
            print(f'model.remat={tried.model.remat}: {report.memory(found)}', flush=True)
        if found.fits:
            break
    if options.parameters:
        print(report.parameters(found.program))
    if not options.row:
        print(report.report(found))
    return 1 if found.fits is False else 0


if __name__ == '__main__':
    sys.exit(main())
