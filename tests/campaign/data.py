"""What a run reads, changed or gone: images, workers, a teacher."""

import os
import shutil
import signal

import numpy as np

from tests.campaign.faults import fault
from tests.campaign.lab import one_sentence, stop_after

# What is made ahead does not reach the end, and no evaluation starts workers of its own.
LONG = ('--config.train.total_steps=100000', '--config.eval.evaluators=()')


def own_images(lab, folder):
    """A copy of the images for one trial, and the argument that reads it."""
    images = folder / 'images'
    shutil.copytree(lab.images(), images)
    return images, f'--config.data.source.path={images}'


@fault(
    'dataset changed before a resume',
    expected='refused in one sentence, nothing is changed',
    trials=5,
    short=1,
)
def changed(lab, number, draws):
    """An image is replaced by one of another size in bytes, renamed, removed or added, or two
    classes are exchanged."""
    folder = lab.work()
    images, argument = own_images(lab, folder)
    stop_after(lab, folder, 3, argument)
    files = sorted((images / 'train').rglob('*.png'))
    path = draws.choice(files)
    kind = ('replaced', 'classes exchanged', 'renamed', 'removed', 'added')[number % 5]
    if kind == 'replaced':
        path.write_bytes(path.read_bytes() + b'\0')
    elif kind == 'classes exchanged':
        for old, new in (('a', 'aside'), ('b', 'a'), ('aside', 'b')):
            (images / 'train' / old).rename(images / 'train' / new)
    elif kind == 'renamed':
        path.rename(path.with_name('other.png'))
    elif kind == 'removed':
        path.unlink()
    else:
        shutil.copy(path, path.with_name('more.png'))
    said = one_sentence(lab.run(folder, argument, status=2))
    assert 'the training data are not those' in said or 'images, the run' in said, said
    return kind


@fault(
    'dataset vanishes under the run',
    expected='ends in one sentence that names an image, status 2; once it is back the same command '
    'resumes',
    trials=4,
    short=1,
)
def vanished(lab, number, draws):
    """The folder of images is renamed after a random step, with threads or worker processes."""
    folder = lab.work()
    images, argument = own_images(lab, folder)
    workers = f'--config.data.workers={number % 2}'
    (process,) = lab.start(folder, argument, workers, *LONG)
    process.reached(lambda: f'\nstep {draws.randint(1, 9):>6}/' in process.output)
    images.rename(folder / 'gone')
    assert process.end() == 2, process.output
    said = one_sentence(process.output)
    assert 'cannot be read' in said and str(images) in said, said
    (folder / 'gone').rename(images)
    (process,) = lab.start(folder, argument, workers, *LONG)
    process.reached(lambda: process.output.count('\nstep') > 3)
    process.send(signal.SIGTERM)
    assert process.end() == 0 and 'resuming after step' in process.output, process.output
    return ('threads', 'workers')[number % 2]


@fault(
    'batch of corrupt images',
    expected='they are named, counted and replaced up to `data.max_corrupt_share`, beyond it '
    'the run ends in one sentence, after those that name them',
    trials=4,
    short=0,
)
def corrupt(lab, number, draws):
    """Every sixth image, and all of them, are truncated or random bytes."""
    folder = lab.work()
    images, argument = own_images(lab, folder)
    every = (6, 1)[number % 2]
    files = sorted((images / 'train').rglob('*.png'))[::every]
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content[:60] if number < 2 else draws.randbytes(len(content)))
    if every == 1:
        output = lab.run(folder, argument, status=2)
        assert 'can be read' in one_sentence(output), output
        assert f'corrupt image: {images}' in output, output
        return 'all'
    output = lab.run(folder, argument, '--config.data.max_corrupt_share=0.5')
    for path in files:
        assert f'corrupt image: {path}' in output, output
    assert f'"data/corrupt_images": {len(files)}' in (folder / 'work/metrics.jsonl').read_text()
    return 'every sixth'


@fault(
    'teacher changed before a resume',
    expected='refused in one sentence, nothing is changed',
    trials=3,
    short=0,
)
def teacher(lab, number, draws):
    """One number of the teacher's file is the next larger one; half of it is there; it is gone."""
    from mim_jax.weights import native

    folder = lab.work()
    path = folder / 'teacher.safetensors'
    shutil.copy(lab.teacher(), path)
    arguments = ('--config=tiny.py:teacher', f'--config.objective.target.weights={path}')
    stop_after(lab, folder, 3, *arguments)
    kind = ('one number', 'truncated', 'gone')[number % 3]
    if kind == 'one number':
        params, metadata = native.load(path)
        scale = np.array(params['blocks']['norm1']['scale'])
        scale.flat[draws.randrange(scale.size)] = np.nextafter(np.float32(1), np.float32(2))
        params['blocks']['norm1']['scale'] = scale
        native.save(path, params, metadata=metadata)
    elif kind == 'truncated':
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    else:
        path.unlink()
    said = one_sentence(lab.run(folder, *arguments, status=2))
    assert 'teacher' in said, said
    return kind


def workers_of(process):
    """The process ids of a run's data workers: spawned, not the tracker of shared memory."""
    found = []
    for entry in os.listdir('/proc'):
        if entry.isdigit():
            try:
                with open(f'/proc/{entry}/stat') as stat, open(f'/proc/{entry}/cmdline') as line:
                    parent = int(stat.read().rpartition(')')[2].split()[1])
                    command = line.read()
            except OSError:
                continue
            if parent == process.pid and 'spawn_main' in command:
                found.append(int(entry))
    return found


def with_workers(lab, folder, draws, *, count):
    """A long run after a random step, and its data workers' process ids."""
    (process,) = lab.start(folder, *LONG, f'--config.data.workers={count}')
    step = draws.randint(1, 99)
    process.reached(lambda: f'\nstep {step:>6}/' in process.output)
    workers = workers_of(process)
    assert len(workers) == count, process.output
    return process, workers


@fault(
    'data worker killed',
    expected='ends in one sentence, status 2, within a minute, and no worker is left',
    trials=4,
    short=1,
)
def worker_killed(lab, number, draws):
    """SIGKILL to a worker process after a random step, as by the kernel when memory is short."""
    process, workers = with_workers(lab, lab.work(), draws, count=2)
    os.kill(draws.choice(workers), signal.SIGKILL)
    assert process.end(within=60) == 2, process.output
    said = one_sentence(process.output)
    assert 'worker' in said and 'resume' in said, said
    assert not any(os.path.exists(f'/proc/{pid}') for pid in workers), 'a worker is left'
    return 'killed'


@fault(
    'data worker hangs',
    expected='SIGTERM or Ctrl-C saves and ends the run within a minute, no worker is left',
    trials=4,
    short=0,
)
def worker_hangs(lab, number, draws):
    """SIGSTOP to all workers after a random step, then one of the two signals."""
    process, workers = with_workers(lab, lab.work(), draws, count=1)
    for pid in workers:
        os.kill(pid, signal.SIGSTOP)
    sent = (signal.SIGTERM, signal.SIGINT)[number % 2]
    process.send(sent)
    assert process.end(within=60) == 0, process.output
    assert 'is saved; the same command' in process.output, process.output
    assert not any(os.path.exists(f'/proc/{pid}') for pid in workers)
    return sent.name
