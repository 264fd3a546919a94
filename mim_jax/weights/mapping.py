"""Tables of names between other projects' ViT weights and ours, usable in both directions."""

import dataclasses
from collections.abc import Callable

import numpy as np

from mim_jax.errors import UserError
from mim_jax.weights import native

BLOCK = '{block}'  # in a foreign name: the block's number; ours then lies on the leading axis


@dataclasses.dataclass(frozen=True)
class Rule:
    """Our parameters `ours` are `read(*theirs)`, theirs are `write(*ours)`; both give tuples."""

    ours: tuple[str, ...]
    theirs: tuple[str, ...]
    read: Callable
    write: Callable


def prefixed(rule, prefix):
    """The rule with `prefix` before every foreign name."""
    return dataclasses.replace(rule, theirs=tuple(prefix + name for name in rule.theirs))


def same(ours, theirs):
    """The same array under another name."""
    return Rule((ours,), (theirs,), lambda x: (x,), lambda x: (x,))


def token(ours, theirs, *, lead):
    """A vector or a list of vectors with `lead` axes of size 1 before it there."""
    return Rule(
        (ours,),
        (theirs,),
        lambda x: (x.reshape(x.shape[lead:]),),
        lambda x: (x.reshape((1,) * lead + x.shape),),
    )


def linear(ours, theirs):
    """A linear layer with bias, whose kernel is stored [outputs, inputs] there."""
    return [
        transposed(f'{ours}/kernel', f'{theirs}.weight'),
        same(f'{ours}/bias', f'{theirs}.bias'),
    ]


def transposed(ours, theirs):
    """A kernel stored [outputs, inputs] there."""
    return Rule((ours,), (theirs,), lambda x: (x.T,), lambda x: (x.T,))


def norm(ours, theirs):
    """A LayerNorm."""
    return [same(f'{ours}/scale', f'{theirs}.weight'), same(f'{ours}/bias', f'{theirs}.bias')]


def split_attention(ours, queries, keys, values, out, *, heads, bias):
    """Attention whose queries, keys and values are three layers there, one kernel here."""

    def read(*kernels):
        width = kernels[0].shape[1]
        return (np.stack([k.T.reshape(width, heads, -1) for k in kernels], axis=1),)

    def write(kernel):
        width = kernel.shape[0]
        return tuple(kernel[:, i].reshape(width, -1).T for i in range(3))

    names = (queries, keys, values)
    rules = [Rule((f'{ours}/qkv/kernel',), tuple(f'{n}.weight' for n in names), read, write)]
    if bias != 'none':
        biased = names if bias == 'all' else (queries, values)
        rules.append(
            Rule(
                (f'{ours}/qkv/bias',),
                tuple(f'{n}.bias' for n in biased),
                lambda *b: (np.stack([x.reshape(heads, -1) for x in b]),),
                lambda b: tuple(x.reshape(-1) for x in b),
            )
        )
    rules.append(
        Rule(
            (f'{ours}/out/kernel',),
            (f'{out}.weight',),
            lambda x: (x.T.reshape(heads, -1, x.shape[0]),),
            lambda x: (x.reshape(-1, x.shape[-1]).T,),
        )
    )
    return [*rules, same(f'{ours}/out/bias', f'{out}.bias')]


def patches(theirs, *, patch_size, bias):
    """The patch embedding: a convolution [D, C, p, q] there, a kernel [p*q*C, D] here."""
    p, q = patch_size
    kernel = Rule(
        ('patch_embed/kernel',),
        (f'{theirs}.weight',),
        lambda x: (x.transpose(2, 3, 1, 0).reshape(-1, x.shape[0]),),
        lambda x: (x.reshape(p, q, -1, x.shape[-1]).transpose(3, 2, 0, 1),),
    )
    return [kernel, same('patch_embed/bias', f'{theirs}.bias')] if bias else [kernel]


def position(theirs, *, grid, lead):
    """A learned table of the class token and all patches, [1 + N, D] after `lead` axes of 1."""

    def read(table):
        table = table.reshape(table.shape[lead:])
        return table[1:].reshape(*grid, -1), table[0]

    def write(table, first):
        table = np.concatenate([first[None], table.reshape(-1, table.shape[-1])])
        return (table.reshape((1,) * lead + table.shape),)

    return Rule(('position/patches', 'position/class_token'), (theirs,), read, write)


def relative_position(ours, theirs, *, grid):
    """BEiT's flat table [(2h-1)(2w-1) + 3, heads] there, patches and class token apart here."""
    spans = tuple(2 * n - 1 for n in grid)
    return Rule(
        (f'{ours}/patches', f'{ours}/class_token'),
        (theirs,),
        lambda x: (x[:-3].reshape(*spans, -1), x[-3:]),
        lambda x, ends: (np.concatenate([x.reshape(-1, x.shape[-1]), ends]),),
    )


def read(tensors, rules, *, depth, what):
    """(params, used names): nested params of ours from foreign `tensors` by name.

    Raises UserError, naming the file `what`, where names are missing or shapes do not fit.
    """
    params, used, missing = {}, set(), []
    for rule in rules:
        stacked = any(BLOCK in name for name in rule.theirs)
        blocks = []
        for block in range(depth if stacked else 1):
            names = [name.replace(BLOCK, str(block)) for name in rule.theirs]
            missing += [name for name in names if name not in tensors]
            used.update(names)
            if not missing:
                try:
                    blocks.append(rule.read(*(np.asarray(tensors[name]) for name in names)))
                except ValueError as error:
                    shapes = ', '.join(f'{n} {list(tensors[n].shape)}' for n in names)
                    raise UserError(f'{what}: wrong shape: {shapes}') from error
        for i, name in enumerate(rule.ours):
            if not missing:
                arrays = [block[i] for block in blocks]
                params[name] = np.stack(arrays) if stacked else arrays[0]
    if missing:
        raise UserError(f'{what}: missing: {native.some(missing)}')
    return native.unflatten(params), used


def write(params, rules, *, depth):
    """Foreign tensors by name from nested `params` of ours: the inverse of `read`."""
    flat, tensors = native.flatten(params), {}
    for rule in rules:
        ours = [np.asarray(flat[name]) for name in rule.ours]
        if any(BLOCK in name for name in rule.theirs):
            for block in range(depth):
                names = [name.replace(BLOCK, str(block)) for name in rule.theirs]
                arrays = rule.write(*(x[block] for x in ours))
                tensors.update(zip(names, arrays, strict=True))
        else:
            tensors.update(zip(rule.theirs, rule.write(*ours), strict=True))
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}
