"""Does the accelerator compute what the CPU computes: groups of tokens, losses, gradients.

    python benchmarks/agreement.py [--config=configs/quickstart.py] [--steps=5] [--images=64]

Groups: the share of images whose groups are the same on both devices, for both forms of bipartite
matching, over many schedules; of random tokens and of the config's teacher's tokens (one array,
given to both); and whether the kernel for such a device forms the same. Steps: training from the
same state on the same images; relative differences of loss, gradient norm and parameters.
"""

import argparse

import jax
import numpy as np
from timing import reason

from mim_jax import config as configs
from mim_jax import data, experiment, sharding
from mim_jax.errors import UserError
from mim_jax.morphing import bipartite_groups, merges_per_step
from mim_jax.program import Program

STEPS = (1, 2, 4, 7, 10, 14)


def schedules(num_tokens):
    for num_steps in STEPS:
        for quarters in (1, 2, 3, 4):
            merged = num_tokens * quarters // 4
            yield merges_per_step(merged, num_steps, num_tokens=num_tokens), num_steps


def grouped(tokens, device, **form):
    tokens = jax.device_put(tokens, device)
    with jax.default_device(device):
        return np.stack(
            [
                bipartite_groups(tokens, r, k, protect_first=True, **{'kernel': 'xla'} | form)
                for r, k in schedules(tokens.shape[1])
            ]
        )


def share(a, b):
    same = np.all(a == b, axis=-1)
    return f'{same.sum()} of {same.size} ({100 * same.mean():.2f} %)'


def compare_groups(name, tokens, cpu, other):
    print(f'groups of {name} tokens {tokens.shape}:')
    groups = {
        (where, exact): grouped(tokens, device, exact=exact)
        for where, device in (('cpu', cpu), ('other', other))
        for exact in (True, False)
    }
    for exact in (True, False):
        form = 'exact form' if exact else 'float32 form'
        equal = share(groups['cpu', exact], groups['other', exact])
        print(f'  {form}, equal on both devices: {equal}')
    equal = share(groups['other', True], groups['other', False])
    print(f'  on the accelerator, float32 form equal to the exact one: {equal}', flush=True)
    try:
        equal = share(groups['other', True], grouped(tokens, other, kernel='pallas'))
        print(f'  on the accelerator, kernel equal to the exact form: {equal}', flush=True)
    except UserError as error:
        print(f'  {error}', flush=True)


def make_program(path, assignments, device):
    config = configs.override(configs.load(path), experiment.Experiment, assignments)
    run = experiment.from_config(config)
    fields = run.data.source.assumed_fields()
    return Program.make(run, epoch_examples=8192, fields=fields, devices=[device])


def images_of(program, count):
    source = data.make_source(program.run.data, split='train')
    host = data.train_batches(source, program.run.data, views=program.views, seed=0)
    return [next(host) for _ in range(count)]


def teacher_tokens(program, images, device):
    place = jax.sharding.SingleDeviceSharding(device)
    variables = jax.device_put(program.objective.pretrained(), place)
    images = jax.device_put(images.astype(np.float32) / 255, place)
    return np.asarray(jax.jit(program.objective.targets)(variables, images))


def train(program, batches):
    """Losses, gradient norms, and the parameters at the end."""
    state = program.init(program.pretrained())
    step = program.trace().lower().compile()
    seen = []
    for batch in batches:
        batch = {k: batch[k] for k in program.abstract_batch}
        state, metrics = step(state, sharding.put_batch(batch, program.mesh))
        seen.append([float(metrics['loss']), float(metrics['grad_norm'])])
    return np.array(seen), jax.device_get(state.variables['params'])


def compare_steps(name, path, fields, precision, batches, cpu, other):
    with jax.default_matmul_precision(precision):
        (mine, params), (theirs, expected) = (
            train(make_program(path, fields, device), batches) for device in (other, cpu)
        )
    loss, norm = np.abs(mine / theirs - 1).T
    flat = [np.concatenate([x.ravel() for x in jax.tree.leaves(t)]) for t in (params, expected)]
    apart = np.linalg.norm(flat[0] - flat[1]) / np.linalg.norm(flat[1])
    print(f'{name}: relative differences by step')
    print(f'  loss {np.array2string(loss, precision=1)}')
    print(f'  gradient norm {np.array2string(norm, precision=1)}')
    print(f'  parameters at the end {apart:.1e}; losses {theirs[:, 0]} on the CPU', flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--config', default='configs/quickstart.py')
    parser.add_argument('--steps', type=int, default=5)
    parser.add_argument('--images', type=int, default=64)
    options = parser.parse_args()
    cpu, other = jax.devices('cpu')[0], jax.devices()[0]
    print(f'cpu against {other.device_kind} ({other.platform}), jax {jax.__version__}', flush=True)

    fields = [('data.batch_size', str(options.images)), ('data.workers', '0')]
    low = [*fields, ('model.dtype', 'bfloat16'), ('objective.target.model.dtype', 'bfloat16')]
    program = make_program(options.config, fields, cpu)
    batches = images_of(program, options.steps)
    with jax.default_matmul_precision('highest'):
        tokens = teacher_tokens(program, batches[0]['images'], cpu)
        again = teacher_tokens(
            make_program(options.config, fields, other), batches[0]['images'], other
        )
    for name, changed, precision in (
        ('float32, exact products', fields, 'highest'),
        ('float32, products as the device likes', fields, 'default'),
        ('bfloat16', low, 'default'),
    ):
        with jax.default_matmul_precision(precision):
            both = [
                teacher_tokens(
                    make_program(options.config, changed, device), batches[0]['images'], device
                )
                for device in (cpu, other)
            ]
        groups = [grouped(x, cpu, exact=True) for x in both]
        print(
            f"  the teacher's own tokens on each device, {name}: {relative(*both):.1e} apart, "
            f'groups equal {share(*groups)}',
            flush=True,
        )
        try:
            compare_steps(name, options.config, changed, precision, batches, cpu, other)
        except Exception as error:
            print(f'{name}: failed: {reason(error)}', flush=True)

    compare_groups("the teacher's", tokens, cpu, other)
    print(f'  tokens on both devices, float32: {relative(again, tokens):.1e} apart')
    own, common = np.random.default_rng(0).standard_normal((2, options.images, 196, 512))
    compare_groups('random', (own + common[:, :1]).astype(np.float32), cpu, other)


def relative(a, b):
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


if __name__ == '__main__':
    main()
