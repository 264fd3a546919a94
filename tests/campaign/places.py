"""The work directory itself: full, write-protected, gone, in use."""

import ctypes
import re
import resource
import shutil
import signal

from tests.campaign.faults import fault
from tests.campaign.lab import STEPS, one_sentence, stop_after

AGAIN = 'once that is mended the same command ends as a run that nothing happened to, bit for bit'


@fault(
    'disk full',
    expected=f'ends in one sentence, status 2, that says truly which checkpoint is kept; {AGAIN}',
    trials=10,
    short=1,
)
def full(lab, number, draws):
    """After a random step no file of the process can grow beyond 1,000 bytes (`RLIMIT_FSIZE`),
    which fails its writes as a full disk does; every third time SIGTERM comes then too."""
    folder = lab.work()
    (process,) = lab.start(folder, '--config.log.tensorboard=true')
    step = draws.randint(1, STEPS - 3)
    process.reached(lambda: f'\nstep {step:>2}/{STEPS}' in process.output)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (1000, 1000))
    if number % 3 == 2:
        process.send(signal.SIGTERM)
    assert process.end() == 2, process.output
    _says_what_is_kept(folder, _sentence_of_a_failed_save(process.output))
    lab.run(folder)
    lab.assert_whole(folder)
    return 'SIGTERM too' if number % 3 == 2 else 'in training'


def _sentence_of_a_failed_save(output):
    """`one_sentence`, whatever TensorStore's threads say before it."""
    # They print this of writes that end after the one that failed, each over the others; of any
    # other stack trace the lines of files stay.
    own = re.compile(
        r'Traceback|base_events\.py|_check_closed|Event loop is closed|Runtime(Error|Warning)|^:'
    )
    left = '\n'.join(line for line in output.splitlines() if not own.search(line))
    assert '  File "' not in left, output
    return one_sentence(left)


def _says_what_is_kept(folder, said):
    """The sentence names the newest whole checkpoint, or says that there is none."""
    saved = folder / 'work/checkpoints'
    steps = [int(path.name) for path in saved.glob('[0-9]*') if path.name.isdigit()]
    kept = f'step {max(steps)}' if steps else 'there is no checkpoint'
    assert kept in said, f'{kept}: {said}'


@fault(
    'work directory deleted under the run',
    expected='ends in one sentence, status 2, that says so',
    trials=6,
    short=1,
)
def deleted(lab, number, draws):
    """It is removed, with all that is in it, after a random step."""
    folder = lab.work()
    (process,) = lab.start(folder, '--config.train.total_steps=100000')
    step = draws.randint(1, 20)
    process.reached(lambda: f'\nstep {step:>6}/' in process.output)
    # The run may be writing in it, and make folders anew: its files go in any case.
    while (folder / 'work/config.json').exists():
        shutil.rmtree(folder / 'work', ignore_errors=True)
    assert process.end(within=120) == 2, process.output
    said = _sentence_of_a_failed_save(process.output)
    assert 'is gone' in said, said
    return 'deleted'


@fault(
    'write-protected work directory',
    expected='refused in one sentence, status 2, nothing is changed',
    trials=4,
    short=1,
)
def protected(lab, number, draws):
    """The folder, or `checkpoints` in it, cannot be written in (a superuser's process is
    without the right to do so all the same): at a fresh start, and when a run is resumed."""
    folder = lab.work()
    case = ('fresh', 'resumed', 'resumed, checkpoints')[number % 3]
    if case == 'fresh':
        (folder / 'work').mkdir()
    else:
        stop_after(lab, folder, 3)
    protected = folder / ('work/checkpoints' if 'checkpoints' in case else 'work')
    protected.chmod(0o555)
    before = sorted(folder.rglob('*'))
    (process,) = lab.start(folder, limits=_without_rights)
    assert process.end() == 2, process.output
    said = one_sentence(process.output)
    assert 'write-protected' in said and str(protected.name) in said, said
    assert sorted(folder.rglob('*')) == before
    return case


def _without_rights():
    """Takes from a superuser's process to come the right to write where modes forbid it."""
    drop_from_bounding_set, write_anywhere = 24, 1
    ctypes.CDLL(None).prctl(drop_from_bounding_set, write_anywhere, 0, 0, 0)


@fault(
    'two runs in one work directory',
    expected='one of them is refused in one sentence, status 2; the other ends as if it were alone',
    trials=6,
    short=1,
)
def two(lab, number, draws):
    """Both are started at once, or the second at a random step of the first."""
    folder = lab.work()
    runs = lab.start(folder)
    step = draws.randint(0, STEPS - 3)
    if number % 2:
        runs[0].reached(lambda: f'\nstep {step:>2}/{STEPS}' in runs[0].output)
        runs[0].send(signal.SIGSTOP)  # it would be over before the second one looks
    runs += lab.start(folder)
    if number % 2:
        runs[1].end()
        runs[0].send(signal.SIGCONT)
    runs.sort(key=lambda process: process.end())
    assert [process.status for process in runs] == [0, 2], [p.output for p in runs]
    assert 'is in use by process' in one_sentence(runs[1].output)
    lab.assert_whole(folder)
    return 'later' if number % 2 else 'at once'
