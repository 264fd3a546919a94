"""Damage to what a work directory holds: checkpoints, and the records beside them."""

import re
import shutil

from mim_jax import checkpoints, integrity
from tests.campaign.faults import fault
from tests.campaign.lab import STEPS, figures, one_sentence

KINDS = ('truncated', 'missing file', 'flipped byte', 'half written', 'empty folder')


def damaged(folder, kind, draws):
    """Damages the newest checkpoint of a run in one of KINDS."""
    newest = folder / f'work/checkpoints/{STEPS}'
    files = sorted(path for path in newest.rglob('*') if path.is_file())
    files = [path for path in files if path.name != integrity.FILE and path.stat().st_size]
    path = draws.choice(files)
    content = bytearray(path.read_bytes())
    if kind == 'truncated':
        path.write_bytes(content[: draws.randrange(len(content))])
    elif kind == 'missing file':
        path.unlink()
    elif kind == 'flipped byte':
        content[draws.randrange(len(content))] ^= 1 << draws.randrange(8)
        path.write_bytes(content)
    elif kind == 'half written':  # as by a copy that was broken off: the later files lack
        for later in files[draws.randrange(len(files)) :]:
            later.unlink()
    else:
        shutil.rmtree(newest)
        newest.mkdir()


def copied(lab):
    """A new folder with a copy of the run that nothing happened to."""
    whole, _ = lab.whole()
    folder = lab.work()
    shutil.copytree(whole / 'work', folder / 'work')
    return folder


@fault(
    'damaged checkpoint, looked at',
    expected='the damage is found and the checkpoint before it chosen',
    trials=500,
    short=15,
)
def looked_at(lab, number, draws):
    """A random file of the newest checkpoint is truncated, removed, or has a bit flipped; or files
    from a random one on are missing; or the folder is empty."""
    folder, kind = copied(lab), KINDS[number % 5]
    damaged(folder, kind, draws)
    found = checkpoints.find(folder / 'work')
    assert found.step == STEPS - 2 and list(found.damaged) == [STEPS], f'{kind}: {found}'
    shutil.rmtree(folder)
    return kind


@fault(
    'damaged checkpoint, resumed from',
    expected='it is named and kept as `STEP.damaged`; the run goes on from the one before and ends '
    'as one that nothing happened to, bit for bit',
    trials=10,
    short=1,
)
def resumed_from(lab, number, draws):
    """As above, and the command is started again."""
    folder, kind = copied(lab), KINDS[(number + 2) % 5]
    damaged(folder, kind, draws)
    output = lab.run(folder)
    assert f'the checkpoint of step {STEPS} is damaged' in output, output
    assert f'resuming after step {STEPS - 2}' in output, output
    assert (folder / f'work/checkpoints/{STEPS}.damaged').is_dir()
    lab.assert_whole(folder)
    return kind


def _unfinished(lab):
    """A copy whose last checkpoint is missing, so that a start has something to do."""
    folder = copied(lab)
    shutil.rmtree(folder / f'work/checkpoints/{STEPS}')
    return folder


@fault(
    'damaged config.json or fingerprints.json',
    expected='refused in one sentence that says what to do, nothing is changed',
    trials=8,
    short=1,
)
def records(lab, number, draws):
    """Truncated at a random byte, empty, other bytes, JSON of another kind."""
    folder = _unfinished(lab)
    name = ('fingerprints.json', 'config.json')[number % 2]
    path = folder / 'work' / name
    content = path.read_bytes()
    kinds = {
        'truncated': content[: draws.randrange(1, len(content) - 2)],
        'empty': b'',
        'other bytes': draws.randbytes(64),
        'another JSON': b'[1, 2]',
    }
    kind = list(kinds)[number // 2 % 4]
    path.write_bytes(kinds[kind])
    before = contents(folder)
    said = one_sentence(lab.run(folder, status=2))
    assert name in said and len(said) < 400, said
    assert contents(folder) == before, 'something was written'
    return f'{name} {kind}'


@fault(
    'damaged metrics.jsonl',
    expected='lines that cannot be read are kept in `metrics.superseded.jsonl` and said; the run '
    'goes on',
    trials=6,
    short=0,
)
def metrics(lab, number, draws):
    """A line cut short, other bytes in the middle, a line of another kind."""
    folder = _unfinished(lab)
    path = folder / 'work/metrics.jsonl'
    lines = path.read_bytes().splitlines(keepends=True)
    at = draws.randrange(1, STEPS - 3)  # before the checkpoint from which the run goes on
    kind = ('cut short', 'other bytes', 'of another kind')[number % 3]
    lines[at] = {
        'cut short': lines[at][: len(lines[at]) // 2] + b'\n',
        'other bytes': draws.randbytes(40).replace(b'\n', b'x') + b'\n',
        'of another kind': b'{"step": "seven"}\n',
    }[kind]
    path.write_bytes(b''.join(lines))
    output = lab.run(folder)
    assert re.search(r'lines of metrics.jsonl that .*cannot be read, moved to', output), output
    whole, _ = lab.whole()
    expected = figures(whole)
    assert figures(folder) == expected[:at] + expected[at + 1 :]
    moved = (folder / 'work/metrics.superseded.jsonl').read_bytes()
    assert kind == 'other bytes' or lines[at] in moved
    return kind


@fault('damaged lock', expected='the run starts: the lock is the system’s', trials=3, short=0)
def lock(lab, number, draws):
    """The file has other bytes, is empty, or is missing."""
    folder = _unfinished(lab)
    path = folder / 'work/lock'
    kind = ('other bytes', 'empty', 'missing')[number % 3]
    path.unlink()
    if kind != 'missing':
        path.write_bytes(draws.randbytes(50) if kind == 'other bytes' else b'')
    lab.run(folder)
    lab.assert_whole(folder)
    return kind


def contents(folder):
    """Every file below a folder with its bytes; the lock says who holds it."""
    found = (path for path in folder.rglob('*') if path.is_file() and path.name != 'lock')
    return {path: path.read_bytes() for path in found}
