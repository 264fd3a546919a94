"""A run that is killed or interrupted at a random moment, and started again."""

import signal

from tests.campaign.faults import fault
from tests.campaign.lab import EVALUATED, STEPS, Lab

# Each moment is waited for, and the signal then comes a random time later, about its length.
MOMENTS = ('start-up', 'compile', 'step', 'save', 'iterator save', 'evaluation')


def interrupt(lab: Lab, folder, moment, draws, number, *, processes):
    """Starts a run and sends a signal to all of its processes at a moment; gives the processes."""
    run = lab.start(folder, processes=processes)
    first = run[0]
    step = draws.randint(1, STEPS - 1)
    if moment == 'start-up':
        _, seconds = lab.whole(processes)
        delay = draws.uniform(0, seconds)
        first.reached(lambda: first.age > delay)
    else:
        came = first.reached(lambda: _came(moment, step, first.output, folder / 'work/checkpoints'))
        assert came or 'save' in moment, f'no {moment} was seen:\n{first.output}'
        pause = first.age + draws.uniform(0, {'compile': 0.4, 'evaluation': 0.2}.get(moment, 0.05))
        first.reached(lambda: first.age > pause)
    for process in run:
        process.send(number)
    return run


def _came(moment, step, output, checkpoints):
    """Whether a moment has come: by what was printed, and what Orbax is writing."""
    if moment == 'compile':
        return 'compiling the step' in output
    if moment == 'evaluation':
        return f'\nstep {EVALUATED:>2}/{STEPS}' in output
    if f'\nstep {step:>2}/{STEPS}' not in output:
        return False
    written = {'save': '*.orbax-checkpoint-tmp*', 'iterator save': '*tmp*/progress*'}
    return moment == 'step' or any(checkpoints.glob(written[moment]))


def goes_on(lab, moment, draws, numbers, *, processes):
    """Interrupts a run once for each signal (again while it resumes), then lets it end; it equals
    one that nothing happened to.
    """
    folder = lab.work()
    for number in numbers:
        for process in interrupt(lab, folder, moment, draws, number, processes=processes):
            status = process.end()
            assert 'Traceback' not in process.output, process.output
            allowed = (-number, 0) if number == signal.SIGKILL else (128 + number, 0)
            assert status in allowed, f'status {status}:\n{process.output}'
    lab.run(folder, processes=processes)
    lab.assert_whole(folder, processes=processes)
    return moment


RESUMES = (
    'the same command resumes; the last parameters and every line of `metrics.jsonl` equal those '
    'of a run that was never stopped, bit for bit'
)


@fault('kill -9, one process', expected=RESUMES, trials=50, short=1)
def killed(lab, number, draws):
    """SIGKILL at a random moment of: start-up, compilation, a step, the asynchronous save, the save
    of the data iterator, an evaluation."""
    return goes_on(lab, MOMENTS[number % 6], draws, [signal.SIGKILL], processes=1)


@fault('kill -9, two processes', expected=RESUMES, trials=50, short=0)
def both_killed(lab, number, draws):
    """As above, both at once."""
    moment = MOMENTS[(number + 3) % 6]
    return goes_on(lab, moment, draws, [signal.SIGKILL], processes=2)


@fault(
    'SIGTERM or Ctrl-C, one process',
    expected=f'ends at once before the first step, saves after it; {RESUMES}',
    trials=30,
    short=1,
)
def signalled(lab, number, draws):
    """One of the two at the same moments, no stack trace."""
    sent = (signal.SIGTERM, signal.SIGINT)[number % 2]
    moment = MOMENTS[(number // 2 + 2) % 6]
    goes_on(lab, moment, draws, [sent], processes=1)
    return f'{sent.name} in {moment}'


@fault(
    'SIGTERM or Ctrl-C, two processes',
    expected=f'both save at the same step; {RESUMES}',
    trials=20,
    short=0,
)
def both_signalled(lab, number, draws):
    """One of the two to both processes, as a scheduler does, after the first step."""
    sent = (signal.SIGTERM, signal.SIGINT)[number % 2]
    moment = MOMENTS[2:][number // 2 % 4]
    goes_on(lab, moment, draws, [sent], processes=2)
    return f'{sent.name} in {moment}'
