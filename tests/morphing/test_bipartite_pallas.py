"""Bipartite matching in one kernel, that of TPUs and that of GPUs: against the exact form,
interpreted or on such a device; and compiled for TPUs.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mim_jax import keys, sharding
from mim_jax.errors import UserError
from mim_jax.morphing import Morphing, bipartite, bipartite_gpu, bipartite_groups, bipartite_tpu
from mim_jax.morphing.bipartite import Bipartite
from mim_jax.morphing.bipartite_pallas import pallas_groups
from mim_jax.sharding import MeshConfig

PLATFORM = jax.default_backend()


@pytest.fixture(autouse=True, params=['tpu', 'gpu'])
def kernel(request, monkeypatch):
    if PLATFORM == 'cpu':
        form = functools.partial(pallas_groups, interpret=request.param)
        monkeypatch.setattr(bipartite, 'pallas_groups', form)
    elif request.param != PLATFORM:
        pytest.skip(f'this is a {PLATFORM}')
    return request.param


def images(rng, num_tokens, width):
    """Independent tokens; tokens of many lengths; objects with a large common part; tokens that
    repeat each other; some of norm zero; all equal.
    """
    noise = rng.standard_normal((6, num_tokens, width))
    noise[1] *= np.exp(rng.normal(size=(num_tokens, 1)))
    objects = rng.standard_normal((4, width))[rng.integers(0, 4, num_tokens)]
    noise[2] = 0.15 * noise[2] + objects + 2 * rng.standard_normal(width)
    noise[3] = objects
    noise[4, 3:9] = 0
    noise[5] = 1
    return noise.astype(np.float32)


def assert_equal_groups(tokens, schedules):
    for schedule in schedules:
        for protect_first in (True, False):
            form = functools.partial(bipartite_groups, tokens, *schedule)
            expected = form(protect_first=protect_first, kernel='xla')
            found = form(protect_first=protect_first, kernel='pallas')
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found, expected, err_msg=f'{schedule} {protect_first=}')


def test_groups_are_those_of_the_exact_form():
    """Ties included; schedules that join nothing, a few, and all that can be joined."""
    rng = np.random.default_rng(0)
    schedules = [(0, 3), (1, 1), (2, 14), (5, 2), (21, 1), (21, 14)]
    schedules += [(int(r), int(k)) for r, k in rng.integers(1, 15, (8, 2))]
    for tokens in (images(rng, 21, 6), images(rng, 21, 6)):
        assert_equal_groups(tokens, schedules)


@pytest.mark.parametrize('num_tokens', [1, 3])
def test_few_tokens(num_tokens):
    assert_equal_groups(images(np.random.default_rng(1), num_tokens, 4), [(1, 2), (16, 3)])


@pytest.mark.slow
@pytest.mark.parametrize('num_tokens', [196, 197])
def test_groups_of_a_whole_image(num_tokens):
    tokens = images(np.random.default_rng(2), num_tokens, 48)
    # Of four tokens, each there dozens of times, hundreds tie, and the last bit of rounded sums
    # decides: in it the exact form's own two ways to fold differ from each other, too.
    tokens = np.delete(tokens, 3, axis=0)
    assert_equal_groups(tokens, [(14, 14), (28, 7), (98, 1), (3, 9), (7, 14)])


def test_one_compilation_serves_every_schedule():
    tokens = jnp.asarray(images(np.random.default_rng(3), 21, 6))
    before = pallas_groups._cache_size()
    for r, k in ((0, 1), (3, 5)):
        bipartite_groups(tokens, r, k, protect_first=True, kernel='pallas')
    assert pallas_groups._cache_size() <= before + 1


@pytest.mark.slow
def test_shares_of_a_batch_and_draws_without_gradient():
    target = jnp.asarray(images(np.random.default_rng(4), 21, 6))
    key, per_image = jax.random.key(0), keys.per_example(jax.random.key(1), 6)

    def groups(kernel, target):
        morphing = Morphing(num_shares=3, grouping=Bipartite(kernel=kernel))
        return morphing.groups(key, target, keys=per_image)

    expected = groups('xla', target)
    assert len({len(set(row.tolist())) for row in expected}) > 1
    np.testing.assert_array_equal(groups('pallas', target), expected)
    slope = jax.grad(lambda x: jnp.sum(jnp.sin(groups('pallas', x) * 1.0)))(target)
    np.testing.assert_array_equal(slope, jnp.zeros_like(target))


def test_every_device_groups_its_own_images():
    tokens = np.tile(images(np.random.default_rng(5), 21, 6)[:4], (2, 1, 1))
    expected = bipartite_groups(tokens, 3, 4, protect_first=True)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    place = sharding.batch_sharding(mesh)

    def groups(tokens):
        return bipartite_groups(tokens, 3, 4, protect_first=True, kernel='pallas')

    on_mesh = jax.jit(sharding.on_mesh(groups, mesh), out_shardings=place)
    program = on_mesh.lower(jax.device_put(tokens, place)).compile()
    for collective in ('all-gather', 'all-reduce', 'all-to-all', 'collective-permute'):
        assert collective not in program.as_text()
    np.testing.assert_array_equal(program(jax.device_put(tokens, place)), expected)


def test_it_is_refused_where_it_cannot_run(kernel, monkeypatch):
    with pytest.raises(ValueError, match="'pallas' has the exact form alone: set exact to True"):
        Bipartite(kernel='pallas', exact=False)
    monkeypatch.setattr(sharding, 'device_kind', lambda: 'AMD Instinct MI300X')
    schedule = (jnp.int32(1),) * 3
    expected = "NVIDIA GPUs since Ampere, and this is 'AMD Instinct MI300X': set it to 'xla'"
    with pytest.raises(UserError, match=expected):
        pallas_groups(jnp.ones((1, 9, 3)), *schedule)
    most = {'tpu': bipartite_tpu, 'gpu': bipartite_gpu}[kernel].MAX_TOKENS
    with pytest.raises(UserError, match=f'at most {most} here'):
        pallas_groups(jnp.ones((1, most + 1, 3)), *schedule, interpret=kernel)


@pytest.mark.parametrize(
    'kind, expected', [('NVIDIA H200', 'pallas'), ('Tesla T4', 'xla'), ('TPU v5 lite', 'xla')]
)
def test_auto_is_the_kernel_where_it_was_measured(monkeypatch, kind, expected):
    seen = []
    monkeypatch.setattr(bipartite, 'pallas_groups', lambda *_: seen.append('pallas'))
    monkeypatch.setattr(bipartite, '_groups', lambda *_: seen.append('xla'))
    monkeypatch.setattr(bipartite, 'feature_groups', lambda *_: seen.append('features'))
    of = functools.partial(bipartite_groups, protect_first=True)
    device = AbstractDevice(device_kind=kind, num_cores=None, platform='any')
    mesh = AbstractMesh((1,), ('data',), (AxisType.Auto,), abstract_device=device)
    with jax.sharding.use_abstract_mesh(mesh):
        of(jnp.ones((1, 8, 3)), 1, 1)
        of(jnp.ones((1, bipartite_gpu.MAX_TOKENS + 1, 3)), 1, 1)
        of(jnp.ones((1, 8, 3)), 1, 1, exact=False)
    of(jnp.ones((1, 8, 3)), 1, 1)
    assert seen == [expected, 'xla', 'features', 'xla']


def test_a_jax_without_the_part_of_pallas_is_told(kernel, monkeypatch):
    kind = {'tpu': 'TPU v5 lite', 'gpu': 'NVIDIA H200'}[kernel]
    monkeypatch.setattr(sharding, 'device_kind', lambda: kind)
    monkeypatch.setitem(sys.modules, f'mim_jax.morphing.bipartite_{kernel}', None)
    with pytest.raises(UserError, match=f'does not work with jax {jax.__version__}'):
        pallas_groups(jnp.ones((2, 9, 3)), *(jnp.int32(1),) * 3)


@pytest.mark.slow
def test_it_compiles_for_tpus(kernel):
    if kernel != 'tpu':
        pytest.skip('needs an installation with CUDA')
    pytest.importorskip('libtpu', reason='libtpu is not installed')
    from mim_jax.preflight import topology

    mesh = sharding.make_mesh(MeshConfig(fsdp=4, data=1), topology.devices('v5e:2x2'))
    tokens = jax.ShapeDtypeStruct((8, 196, 64), jnp.float32, sharding=sharding.batch_sharding(mesh))
    number = jax.ShapeDtypeStruct((), jnp.int32, sharding=sharding.replicated(mesh))
    function = jax.jit(sharding.on_mesh(pallas_groups, mesh))
    program = function.lower(tokens, number, number, number).compile().as_text()
    assert program.count('tpu_custom_call') == 1
    assert 'all-gather' not in program and 'all-reduce' not in program
