"""What a compiled step takes, in words."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from mim_jax import placement
from mim_jax.logs import peak_flops
from mim_jax.preflight import gpus
from mim_jax.preflight.compiled import Compiled
from mim_jax.program import Program
from mim_jax.sharding import path_name


def report(found: Compiled) -> str:
    """Mesh, state, FLOPs, memory, bytes sent and the least time of a step, a line each."""
    program, batch_size = found.program, found.program.run.data.batch_size
    mesh = program.mesh
    axes = ', '.join(f'{axis} {size}' for axis, size in mesh.shape.items())
    lines = {'mesh': f'{axes} of {mesh.size} x {found.kind}'}
    ways = mesh.shape['data'] * mesh.shape['fsdp']
    lines['batch'] = f'{batch_size:,} images, {batch_size // ways:,} on a chip'
    for name, tree in program.abstract_state.variables.items():
        lines[name] = _state(jax.tree.leaves(tree))
    lines['optimizer'] = _state(jax.tree.leaves(program.abstract_state.opt_state))
    whole = placement.said_of_whole(program.abstract_state, program.run.mesh)
    if whole:
        lines['whole'] = whole
    repeated = found.flops / found.model_flops - 1 if found.model_flops else 0
    lines['model FLOPs'] = (
        f'{found.model_flops:.4g} per step, {found.model_flops / batch_size:.4g} per image'
        + (f'; rematerialisation adds {repeated:.0%}' if repeated > 0.005 else '')
    )
    lines['compiled in'] = f'{found.seconds:.0f} s'
    lines['memory'] = memory(found)
    if found.fits is False:
        full = "model.remat='full', " if program.run.model.remat != 'full' else ''
        lines['memory'] += f': try {full}train.accumulation, more of mesh.fsdp or a smaller batch'
    if found.arguments is not None:
        lines['sent'] = f'{_sent(found.sent)} (by each chip in a step)'
        lines['step'] = _step(found, batch_size)
    width = max(map(len, lines))
    return '\n'.join(f'{name:{width}}  {text}' for name, text in lines.items())


def row(found: Compiled, *, title: str) -> str:
    """A row of the Markdown table of docs/preflight.md: what a step takes of a chip."""
    run, mesh = found.program.run, found.program.mesh
    axes = [f'{axis} {size}' for axis, size in mesh.shape.items() if size > 1]
    cells = [title, f'{mesh.size} x {found.kind}', ', '.join(axes)]
    cells += [f'{run.data.batch_size:,}', f'{run.model.remat}, {run.train.accumulation}']
    of = f' of {_size(found.capacity)}' if found.capacity else ''
    cells.append((_size(found.memory) + of) if found.memory is not None else 'not told')
    if found.arguments is None:  # a TPU's compiler gives no program that does not fit
        cells += ['does not fit', '', '']
    else:
        cells.append(_sent(found.sent))
        least, utilisation = _least(found)
        cells += [f'{least * 1e3:.3g} ms', f'{utilisation:.0%}'] if least else ['', '']
    cells.append(f'{found.seconds:.0f} s')
    return '| ' + ' | '.join(cells) + ' |'


def parameters(program: Program) -> str:
    """Every array of a batch and of the variables: path, shape, dtype and sharding."""
    leaves = jax.tree_util.tree_leaves_with_path(program.abstract_batch)
    trees = [('batch', leaves)]
    for name, tree in program.abstract_state.variables.items():
        trees.append((name, jax.tree_util.tree_leaves_with_path(tree)))
    lines = []
    for title, leaves in trees:
        width = max(len(path_name(path)) for path, _ in leaves)
        lines.append(f'{title}:')
        for path, leaf in leaves:
            shape, spec = list(leaf.shape), tuple(leaf.sharding.spec)
            lines.append(f'  {path_name(path):{width}}  {leaf.dtype}{shape} {spec}')
    return '\n'.join(lines)


def _state(leaves: list[Any]) -> str:
    numbers = sum(math.prod(leaf.shape) for leaf in leaves)
    held = sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * jnp.dtype(leaf.dtype).itemsize
        for leaf in leaves
    )
    return f'{numbers:,} numbers, {_size(held)} on a chip'


def memory(found: Compiled) -> str:
    """What a step needs of a chip's memory, and whether it has that."""
    if found.memory is None:
        return 'not told by this compiler'
    parts = ''
    if found.arguments is not None:
        parts = f' (state and batch {_size(found.arguments)}, temporary {_size(found.temporary)})'
    if found.capacity is None:
        return f'{_size(found.memory)} on a chip{parts}'
    verdict = 'fits' if found.fits else 'DOES NOT FIT'
    if found.share != 1:
        whole = _size(found.capacity / found.share)
        verdict += f' in what JAX takes, {found.share:.0%} of {whole} ({gpus.SHARE_VARIABLES[0]})'
    return f'{_size(found.memory)} of {_size(found.capacity)} on a chip{parts}: {verdict}'


def _sent(sent: dict[str, int]) -> str:
    return ', '.join(f'{kind} {_size(size)}' for kind, size in sent.items()) or 'nothing'


def _least(found: Compiled) -> tuple[float | None, float | None]:
    """The least seconds of a step, and the utilisation at that; None where it is not known."""
    compute, network = found.compute_seconds, found.network_seconds
    if compute is None or network is None:
        return None, None
    least = max(compute, network)
    peak = peak_flops(found.kind) * found.program.mesh.size
    return least, found.model_flops / (peak * least)


def _step(found: Compiled, batch_size: int) -> str:
    least, utilisation = _least(found)
    if least is None:
        return f'no time is estimated: the rates of {found.kind} are not known'
    compute, network = found.compute_seconds, found.network_seconds
    return (
        f'at least {least * 1e3:.3g} ms (products {compute * 1e3:.3g}, sending '
        f'{network * 1e3:.3g}; {(compute + network) * 1e3:.3g} one after the other), so at most '
        f'{batch_size / least:,.0f} images/s and {utilisation:.0%} utilisation; traffic with the '
        "chip's own memory is not counted"
    )


def _size(size: float) -> str:
    for unit, scale in (('GiB', 2**30), ('MiB', 2**20), ('KiB', 2**10)):
        if size >= scale:
            return f'{size / scale:.2f} {unit}'
    return f'{size:.0f} B'
