"""Bytes that chips send one another in one run of a compiled program, from its text (HLO)."""

import collections
import math
import re
from collections.abc import Iterator

COLLECTIVES = ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute', 'reduce-scatter')
BETWEEN = 'between slices'
KINDS = (*COLLECTIVES, BETWEEN)

_COMPUTATION = re.compile(r'^(?P<entry>ENTRY )?%?(?P<name>[\w.\-]+) .*\{$')
_COLLECTIVE = re.compile(
    rf'= (?P<result>.*?) (?P<kind>{"|".join(COLLECTIVES)})(?P<start>-start)?\(.*?\)(?P<rest>.*)'
)
# What a TPU hands to its host, which knows the hosts of other slices.
_HANDED = re.compile(
    r'= \((?P<array>.*?\])(?:\{.*?\})?, .* send\(.*handler_name="xla_megascale_runtime"'
)
_ENDED = re.compile(r' async-(?:update|done)\(')  # of what counts where it starts
_CALLED = re.compile(
    r'(?:calls|to_apply|condition|body|\w*computations?)=\{?((?:%[\w.\-]+(?:, )?)+)'
)
_ARRAY = re.compile(r'\b([a-z]+\d+|pred)(?:e\d+m\d+\w*)?\[([\d,]*)\]')


def sent(text: str) -> dict[str, int]:
    """Bytes that each chip sends, by kind (of KINDS; those of no bytes left out).

    text: of an optimised program, `compiled.as_text()`.

    A collective among n chips is counted as on a ring: of R bytes of a result, all-gather and
    all-to-all send (n - 1)/n R, all-reduce twice that, reduce-scatter (n - 1) R, collective-permute
    R. What is inside a loop counts as often as the loop runs; where that is decided while it runs,
    once. TPUs: an all-reduce of which each chip keeps its part only, in one fused operation, is a
    reduce-scatter; of the steps of one collective among other work, a chain, the largest counts.
    What goes to other slices is what a chip hands to its host for them, once, and no collective.
    """
    computations = dict(_computations(text))
    partitions = re.search(r'num_partitions=(\d+)', text)
    everyone = int(partitions.group(1)) if partitions else 1
    entry = next(name for name, (is_entry, _) in computations.items() if is_entry)
    total: collections.Counter = collections.Counter()
    chains: dict[tuple[str, ...], tuple[float, str]] = {}

    def walk(name: str, times: int) -> None:
        for line in computations[name][1]:
            found = _COLLECTIVE.search(line)
            if found:
                kind, size = found['kind'], times * _sent(found, everyone)
                if kind == 'all-reduce' and name.startswith('all-reduce-scatter'):
                    kind, size = 'reduce-scatter', size / 2
                chain = re.search(r'channel_id=(\d+).*chain_id="(\d+)"', line)
                if chain:
                    steps = chain.groups()
                    chains[steps] = max(chains.get(steps, (0.0, '')), (size, kind))
                else:
                    total[kind] += size
                continue
            handed = _HANDED.search(line)
            if handed:
                total[BETWEEN] += times * _bytes(*_ARRAY.search(handed['array']).groups())
            if handed or _ENDED.search(line):
                continue
            repeats = times
            if ' while(' in line:
                repeats *= _trip_count(line, computations)
            for called in _CALLED.findall(line):
                for inner in re.findall(r'%([\w.\-]+)', called):
                    walk(inner, repeats)

    walk(entry, 1)
    for size, kind in chains.values():
        total[kind] += size
    return {kind: round(total[kind]) for kind in KINDS if round(total[kind])}


def _computations(text: str) -> Iterator[tuple[str, tuple[bool, list[str]]]]:
    name, is_entry, lines = None, False, []
    for line in text.splitlines():
        if name is None:
            header = _COMPUTATION.match(line)
            if header and '->' in line:
                name, is_entry, lines = header['name'], bool(header['entry']), []
        elif line == '}':
            yield name, (is_entry, lines)
            name = None
        else:
            lines.append(line)


def _trip_count(line: str, computations: dict[str, tuple[bool, list[str]]]) -> int:
    """How often a loop runs: as the compiler notes it, or by the constant its counter is compared
    with; 1 where it is neither.
    """
    known = re.search(r'"known_trip_count":\{"n":"(\d+)"', line)
    if known:
        return int(known.group(1))
    condition, body = (
        computations[re.search(rf'{part}=%([\w.\-]+)', line).group(1)][1]
        for part in ('condition', 'body')
    )
    root = next(text for text in condition if text.lstrip().startswith('ROOT'))
    compared = re.search(r' compare\(%([\w.\-]+), %([\w.\-]+)\), direction=LT', root)
    limit = compared and _constant(compared.group(2), condition)
    if not limit:
        return 1
    return -(-limit // _stride(compared.group(1), condition, body))


def _constant(name: str, lines: list[str]) -> int | None:
    found = re.compile(rf'%{re.escape(name)} = [su]32\[\].* constant\((\d+)\)')
    return next((int(m.group(1)) for m in map(found.search, lines) if m), None)


def _stride(counter: str, condition: list[str], body: list[str]) -> int:
    """What a loop's body adds to its counter, more than 1 where the compiler has unrolled it."""
    place = re.compile(rf'%{re.escape(counter)} = .* get-tuple-element\(.*\), index=(\d+)')
    index = next((int(m.group(1)) for m in map(place.search, condition) if m), None)
    root = next((text for text in body if text.lstrip().startswith('ROOT')), '')
    given = re.search(r' tuple\((.*?)\)', root)
    if index is None or not given:
        return 1
    name = re.findall(r'%([\w.\-]+)', given.group(1))[index]
    added = re.compile(rf'%{re.escape(name)} = .* add\(%([\w.\-]+), %([\w.\-]+)\)')
    terms = next((m.groups() for m in map(added.search, body) if m), ())
    return next((step for step in (_constant(term, body) for term in terms) if step), 1)


def _sent(found: re.Match, everyone: int) -> float:
    result = found['result']
    if found['start']:
        # Most starts give their operands, then their results, then tokens; all-reduce, with older
        # compilers, its results alone.
        first, *others = _members(result)
        if first.startswith('(') or found['kind'] in ('all-gather', 'collective-permute'):
            result = others[0]
    size = sum(_bytes(*array) for array in _ARRAY.findall(result))
    n = _group_size(found['rest'], everyone)
    if found['kind'] == 'collective-permute':
        return size
    if found['kind'] == 'reduce-scatter':
        return (n - 1) * size
    return (n - 1) / n * size * (2 if found['kind'] == 'all-reduce' else 1)


def _members(shape: str) -> list[str]:
    """Of a tuple, the shapes of its members; of an array, its own."""
    members, depth = [''], 0
    for character in shape[1:-1] if shape.startswith('(') else shape:
        depth += (character in '({[') - (character in ')}]')
        if character == ',' and not depth:
            members.append('')
        else:
            members[-1] += character
    return [member.strip() for member in members]


def _bytes(dtype: str, shape: str) -> int:
    bits = 8 if dtype == 'pred' else int(re.search(r'\d+', dtype).group())
    return math.prod(int(size) for size in shape.split(',') if size) * max(bits, 8) // 8


def _group_size(rest: str, everyone: int) -> int:
    """Chips of one group, from any of the ways in which groups are written."""
    listed = re.search(r'replica_groups=\{\{([\d,]+)\}', rest)
    if listed:
        return len(listed.group(1).split(','))
    iota = re.search(r'replica_groups=\[\d+,(\d+)\]', rest)
    if iota:
        return int(iota.group(1))
    mesh = re.search(r'replica_groups=mesh\[(.*?)\](?:, device_ids=\(.*?\))? \{(.*?)\}', rest)
    if mesh:
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", mesh.group(1)))
        axes = re.findall(r"'(\w+)'(?::\(\d+\)(\d+))?", mesh.group(2))  # (2)4: a part, of 4
        return math.prod(int(part or sizes[axis]) for axis, part in axes)
    return everyone
