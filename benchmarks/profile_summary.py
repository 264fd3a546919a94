"""Where the time of a traced step goes, from what `train_step.py --profile=DIR` wrote.

    python benchmarks/profile_summary.py DIR [--steps=3] [--top=25] [--gaps=10]

Prints, per step of the first accelerator in the trace: busy and idle time, time by part of the step
(named scopes), by kind of kernel, the longest operations, and the longest pauses between kernels
with what stands before and after them.
"""

import argparse
import collections
import gzip
import re
from pathlib import Path

from jax.profiler import ProfileData

# The first pattern that an operation's path matches names its part.
PARTS = (
    ('teacher', r'target'),
    ('morphing', r'morphing'),
    ('view', r'\bview'),
    ('student backward', r'transpose\(.*student'),
    ('student forward', r'student'),
    ('optimiser and the rest', r''),
)
INSIDE = (
    (
        'copies of the loop over blocks',
        r'while/body(/jit\(dynamic_\w*\))?(/dynamic_\w+)?$|Transformer/broadcast_in_dim$',
    ),
    ('attention logits, softmax, values', r'(attention|Attention)/(?!qkv|out)'),
    ('attention qkv and out', r'(attention|Attention)/(qkv|out)'),
    ('mlp', r'mlp'),
    ('norms', r'norm\d?'),
    ('relative position', r'relative_position'),
    ('patch embedding', r'patch_embed'),
    ('the rest', r''),
)
KINDS = (
    ("Pallas' kernels", r'pallas_call'),
    ('matrix products', r'gemm|nvjet|cublas|dot|cutlass|convolution|cudnn'),
    ('copies', r'copy|memcpy|memset|dynamic.update|dynamic.slice'),
    ('transposes', r'transpose'),
    ('reductions', r'reduce'),
    ('element by element', r''),
)


def first(patterns, text, flags=0):
    return next(name for name, pattern in patterns if re.search(pattern, text, flags))


def events(folder):
    """[(start, end, kernel, operation, path)] in ns, by start; and the plane's name."""
    (path,) = Path(folder).glob('plugins/profile/*/*.xplane.pb')
    for plane in ProfileData.from_file(str(path)).planes:
        if not plane.name.startswith('/device:'):
            continue
        found = []
        for line in plane.lines:
            for event in line.events:
                stats = dict(event.stats)
                end = event.start_ns + event.duration_ns
                operation = str(stats.get('hlo_op', ''))
                found.append(
                    (event.start_ns, end, event.name, operation, str(stats.get('name', '')))
                )
        return plane.name, sorted(found)
    raise SystemExit(f'{path} has no accelerator in it')


def program(folder):
    """(result type, path) of every operation of the compiled program."""
    line = re.compile(r'^\s*(?:ROOT )?%?([\w.-]+) = (\(?[\w\[\],]+)(?:.*?op_name="([^"]*)")?', re.M)
    with gzip.open(Path(folder) / 'program.txt.gz', 'rt') as file:
        return {name: (kind, path) for name, kind, path in line.findall(file.read())}


def table(title, totals, steps, whole):
    print(f'{title}: ms per step')
    for name, time in sorted(totals.items(), key=lambda item: -item[1]):
        print(f'  {time / steps / 1e6:9.2f} {100 * time / whole:5.1f} %  {name}')


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('folder')
    parser.add_argument('--steps', type=int, default=3)
    parser.add_argument('--top', type=int, default=25)
    parser.add_argument('--gaps', type=int, default=10)
    options = parser.parse_args()
    plane, found = events(options.folder)
    known = program(options.folder)
    total = found[-1][1] - found[0][0]
    busy, until, gaps, before = 0, found[0][0], [], ''
    for start, end, kernel, operation, _ in found:
        if start > until:
            gaps.append((start - until, before, operation or kernel))
        busy += max(0, end - max(start, until))
        if end > until:
            until, before = end, operation or kernel
    per_step = 1e6 * options.steps
    print(
        f'{plane}: {len(found)} operations; {total / per_step:.1f} ms per step, '
        f'busy {busy / per_step:.1f}'
    )
    parts, inside, kinds, single = (collections.Counter() for _ in range(4))
    for start, end, kernel, operation, path in found:
        path = known.get(operation, ('', ''))[1] or path
        part = first(PARTS, path)
        parts[part] += end - start
        kinds[first(KINDS, f'{kernel} {operation}', re.I)] += end - start
        if 'student' in part or part == 'teacher':
            inside[f'{part}: {first(INSIDE, path)}'] += end - start
        single[operation or kernel, kernel, path] += end - start
    whole = sum(parts.values())
    table('by part', parts, options.steps, whole)
    table('inside the networks', inside, options.steps, whole)
    table('by kind of kernel', kinds, options.steps, whole)
    print('longest operations: ms per step')
    for (operation, kernel, path), time in single.most_common(options.top):
        kind = known.get(operation, ('', ''))[0]
        print(
            f'  {time / per_step:9.2f} {100 * time / whole:5.1f} %  {operation} {kind} '
            f'[{kernel[:40]}] {path[-110:]}'
        )
    print(f'pauses: {sum(g[0] for g in gaps) / per_step:.1f} ms per step in {len(gaps)}; longest:')
    for length, before, after in sorted(gaps, reverse=True)[: options.gaps]:
        print(f'  {length / 1e6:.3f} ms between {before} and {after}')


if __name__ == '__main__':
    main()
