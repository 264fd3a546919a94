"""Tables of names between other projects' ViT weights and ours, usable in both directions."""

import dataclasses
import re
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
    names = (queries, keys, values)

    def read(*kernels):
        width = kernels[0].shape[1]
        return (np.stack([k.T.reshape(width, heads, -1) for k in kernels], axis=1),)

    def write(kernel):
        width = kernel.shape[0]
        return tuple(kernel[:, i].reshape(width, -1).T for i in range(3))

    rules = [Rule((f'{ours}/qkv/kernel',), tuple(f'{n}.weight' for n in names), read, write)]
    if bias != 'none':
        biased = names if bias == 'all' else (queries, values)
        rules.append(_biases(ours, *(f'{n}.bias' for n in biased), heads=heads))
    return [*rules, *_attention_out(ours, out, heads=heads)]


def fused_attention(ours, kernel, biases, out, *, heads):
    """Attention with one kernel [3D,D] there, and one bias [3D], or apart (queries, values)."""
    rules = [
        Rule(
            (f'{ours}/qkv/kernel',),
            (kernel,),
            lambda x: (x.reshape(3, heads, -1, x.shape[-1]).transpose(3, 0, 1, 2),),
            lambda x: (x.transpose(1, 2, 3, 0).reshape(-1, x.shape[0]),),
        )
    ]
    if len(biases) == 1:
        rules.append(
            Rule(
                (f'{ours}/qkv/bias',),
                tuple(biases),
                lambda x: (x.reshape(3, heads, -1),),
                lambda x: (x.reshape(-1),),
            )
        )
    elif biases:
        rules.append(_biases(ours, *biases, heads=heads))
    return [*rules, *_attention_out(ours, out, heads=heads)]


def _biases(ours, *theirs, heads):
    return Rule(
        (f'{ours}/qkv/bias',),
        theirs,
        lambda *b: (np.stack([x.reshape(heads, -1) for x in b]),),
        lambda b: tuple(x.reshape(-1) for x in b),
    )


def _attention_out(ours, out, *, heads):
    kernel = Rule(
        (f'{ours}/out/kernel',),
        (f'{out}.weight',),
        lambda x: (x.T.reshape(heads, -1, x.shape[0]),),
        lambda x: (x.reshape(-1, x.shape[-1]).T,),
    )
    return [kernel, same(f'{ours}/out/bias', f'{out}.bias')]


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


def position(theirs, *, grid, lead, first=True):
    """A learned table [N,D] of all patches after `lead` axes of 1, after its `first` row if any.

    The first row is the class token's; without it, `folded_class_token` is the other half.
    """
    if not first:
        return Rule(
            ('position/patches',),
            (theirs,),
            lambda table: (table.reshape(*grid, -1),),
            lambda table: (table.reshape((1,) * lead + (-1, table.shape[-1])),),
        )

    def read(table):
        table = table.reshape(table.shape[lead:])
        return table[1:].reshape(*grid, -1), table[0]

    def write(table, first):
        table = np.concatenate([first[None], table.reshape(-1, table.shape[-1])])
        return (table.reshape((1,) * lead + table.shape),)

    return Rule(('position/patches', 'position/class_token'), (theirs,), read, write)


def folded_class_token(theirs, *, lead):
    """A class token [D] that holds its position there; here the two are apart."""
    return Rule(
        ('class_token', 'position/class_token'),
        (theirs,),
        lambda x: (x.reshape(x.shape[lead:]), np.zeros_like(x.reshape(x.shape[lead:]))),
        lambda x, position: ((x + position).reshape((1,) * lead + x.shape),),
    )


def relative_position(ours, theirs, *, grid):
    """BEiT's flat table [(2h-1)(2w-1) + 3, heads] there, patches and class token apart here."""
    spans = tuple(2 * n - 1 for n in grid)
    return Rule(
        (f'{ours}/patches', f'{ours}/class_token'),
        (theirs,),
        lambda x: (x[:-3].reshape(*spans, -1), x[-3:]),
        lambda x, ends: (np.concatenate([x.reshape(-1, x.shape[-1]), ends]),),
    )


@dataclasses.dataclass(frozen=True)
class Match:
    """How the names and shapes of a file compare with those that a model needs."""

    used: tuple[str, ...]
    missing: tuple[str, ...]
    wrong: tuple[str, ...]  # 'name [its shape] instead of [the shape needed]'
    left_out: tuple[str, ...]
    unexpected: tuple[str, ...]

    def followed_by(self, other):
        """This match and that of another part, made on the names that this one did not expect."""
        return dataclasses.replace(
            other,
            used=self.used + other.used,
            missing=self.missing + other.missing,
            wrong=self.wrong + other.wrong,
            left_out=self.left_out + other.left_out,
        )

    def check(self, what):
        """Raises UserError, listing names, unless everything needed is there and nothing else."""
        kinds = ('missing', 'wrong shape', 'unexpected')
        lists = (self.missing, self.wrong, self.unexpected)
        problems = [
            f'{kind}: {native.some(names)}'
            for kind, names in zip(kinds, lists, strict=True)
            if names
        ]
        if problems:
            raise UserError(f'{what} is refused whole; {"; ".join(problems)}')


def match(shapes, needed, *, left_out=r'$^'):
    """Compares a file's `shapes` by name with those `needed`; `left_out` is a pattern of names."""
    used = tuple(name for name in needed if name in shapes)
    other = sorted(name for name in shapes if name not in needed)
    known = tuple(name for name in other if re.search(left_out, name))
    return Match(
        used=used,
        missing=tuple(name for name in needed if name not in shapes),
        wrong=tuple(
            f'{name} {list(shapes[name])} instead of {list(needed[name])}'
            for name in used
            if tuple(shapes[name]) != tuple(needed[name])
        ),
        left_out=known,
        unexpected=tuple(name for name in other if name not in known),
    )


def needed_shapes(shapes, rules, *, depth):
    """Foreign shapes by name, from `shapes`: those of our parameters by flat name."""
    needed = {}
    for rule in rules:
        stacked = _stacked(rule)
        arrays = [
            np.broadcast_to(np.int8(0), shapes[n][1:] if stacked else shapes[n]) for n in rule.ours
        ]
        foreign = rule.write(*arrays)
        for block in range(depth if stacked else 1):
            for name, array in zip(rule.theirs, foreign, strict=True):
                needed[name.replace(BLOCK, str(block))] = array.shape
    return needed


def read(tensors, rules, *, depth):
    """Nested params of ours from foreign `tensors` by name, which `match` has found to fit."""
    params = {}
    for rule in rules:
        stacked = _stacked(rule)
        blocks = []
        for block in range(depth if stacked else 1):
            names = [name.replace(BLOCK, str(block)) for name in rule.theirs]
            blocks.append(rule.read(*(np.asarray(tensors[name]) for name in names)))
        for i, name in enumerate(rule.ours):
            arrays = [block[i] for block in blocks]
            params[name] = np.stack(arrays) if stacked else np.ascontiguousarray(arrays[0])
    return native.unflatten(params)


def write(params, rules, *, depth):
    """Foreign tensors by name from nested `params` of ours: the inverse of `read`."""
    flat, tensors = native.flatten(params), {}
    for rule in rules:
        ours = [np.asarray(flat[name]) for name in rule.ours]
        if _stacked(rule):
            for block in range(depth):
                names = [name.replace(BLOCK, str(block)) for name in rule.theirs]
                arrays = rule.write(*(x[block] for x in ours))
                tensors.update(zip(names, arrays, strict=True))
        else:
            tensors.update(zip(rule.theirs, rule.write(*ours), strict=True))
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _stacked(rule):
    return any(BLOCK in name for name in rule.theirs)
