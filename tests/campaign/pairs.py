"""One of the two processes of a run ends or hangs: the other does not wait for it for ever."""

import signal

from mim_jax import peers
from tests.campaign.faults import fault
from tests.campaign.lab import STEPS, one_sentence

# Until the other has noticed and ended; the rest is for a machine that is busy.
BOUND = peers.INTERVAL + peers.LATE + peers.GRACE + 25
ENDS = f'the other one ends within {BOUND} s in one sentence that names it and what is kept'
AGAIN = 'the same command resumes, and ends as a run that nothing happened to, bit for bit'


def alone(lab, draws, sent, victim, moments):
    """Sends signals to one of two processes; gives what the other printed, and the folder."""
    folder = lab.work()
    run = lab.start(folder, processes=2)
    moment = draws.choice(moments)
    step = draws.randint(1, STEPS - 3)
    mark = 'compiling the step' if moment == 'compile' else f'\nstep {step:>2}/{STEPS}'
    run[0].reached(lambda: mark in run[0].output)
    run[victim].send(sent[0])
    for number in sent[1:]:  # two that come before the first is seen are one
        run[victim].reached(lambda: 'once more' in run[victim].output)
        run[victim].send(number)
    status = run[1 - victim].end(within=BOUND)
    if signal.SIGSTOP in sent:
        run[victim].send(signal.SIGKILL)
    run[victim].end()
    return status, run[1 - victim].output, folder, moment


def resumes(lab, folder):
    lab.run(folder, processes=2)
    lab.assert_whole(folder, processes=2)


@fault('process 1 of 2 killed', expected=f'{ENDS}; {AGAIN}', trials=6, short=1)
def second_killed(lab, number, draws):
    """SIGKILL in compilation, or after a random step."""
    status, output, folder, moment = alone(lab, draws, [signal.SIGKILL], 1, ['compile', 'step'])
    said = one_sentence(output)
    assert status == 2 and 'process 1 of this run is gone or hangs' in said, output
    resumes(lab, folder)
    return moment


@fault(
    'process 0 of 2 killed',
    expected=f'the other one ends within {BOUND} s (at once, by JAX’s runtime, whose message has '
    f'native frames); {AGAIN}',
    trials=4,
    short=0,
)
def first_killed(lab, number, draws):
    """SIGKILL in compilation, or after a random step."""
    status, output, folder, moment = alone(lab, draws, [signal.SIGKILL], 0, ['compile', 'step'])
    assert status != 0 and 'another task died' in output, f'status {status}:\n{output}'
    resumes(lab, folder)
    return moment


@fault('one of two processes hangs', expected=f'{ENDS}; {AGAIN}', trials=4, short=0)
def hung(lab, number, draws):
    """SIGSTOP to either of them, in compilation or after a random step."""
    victim = number % 2
    status, output, folder, moment = alone(
        lab, draws, [signal.SIGSTOP], victim, ['compile', 'step']
    )
    said = one_sentence(output)
    assert status == 2 and 'of this run is gone or hangs' in said, output
    resumes(lab, folder)
    return f'process {victim} in {moment}'


@fault(
    'Ctrl-C twice to one of two',
    expected=f'{ENDS}; {AGAIN}',
    trials=4,
    short=0,
)
def interrupted(lab, number, draws):
    """Two SIGINT, the second once the first has been answered, to either of them in compilation."""
    victim = number % 2
    status, output, folder, moment = alone(
        lab, draws, [signal.SIGINT, signal.SIGINT], victim, ['compile']
    )
    said = one_sentence(output)
    assert status == 2 and f'process {victim} of this run ended: it got Ctrl-C' in said, output
    resumes(lab, folder)
    return f'process {victim}'
