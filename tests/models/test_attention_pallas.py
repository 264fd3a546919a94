"""Attention as kernels, those of TPUs and of GPUs: against the plain path, interpreted or on such a
device; and compiled for TPUs.
"""

import functools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractDevice, AbstractMesh, AxisType

from mim_jax import flops, sharding
from mim_jax.errors import UserError
from mim_jax.models import attention, attention_gpu, attention_pallas
from mim_jax.models.attention import KERNELS, attend
from mim_jax.models.attention_pallas import pallas_attention
from mim_jax.models.vit import ViT
from mim_jax.sharding import MeshConfig

PLATFORM = jax.default_backend()


@pytest.fixture(params=['tpu', 'gpu'])
def interpreted(request):
    """The kernel of a device, interpreted where there is none."""
    if PLATFORM == 'cpu':
        return functools.partial(pallas_attention, interpret=request.param)
    if request.param != PLATFORM:
        pytest.skip(f'this is a {PLATFORM}')
    return pallas_attention


def both(attention, cotangent, q, k, v, bias=None):
    """The result and the gradients of all arguments."""
    arguments = (q, k, v) if bias is None else (q, k, v, bias)
    result, pull = jax.vjp(lambda *x: attention(*x[:3], bias=x[3] if x[3:] else None), *arguments)
    return result, *pull(cotangent)


def example(batch, queries, keys, heads, width, biases, dtype=jnp.float32):
    rng = np.random.default_rng([queries, keys])
    shapes = [(batch, length, heads, width) for length in (queries, queries, keys, keys)]
    arrays = [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]
    if biases:
        arrays.append(jnp.asarray(rng.normal(size=(biases, heads, queries, keys)), jnp.float32))
    return arrays


# In the second two heads of four at once, in the third all three.
SIZES = {
    'self-attention': (2, 17, 17, 2, 16, 1),
    'a bias of every image, fewer queries': (3, 5, 9, 4, 64, 3),
    'no bias': (2, 7, 4, 3, 64, 0),
}


@pytest.mark.parametrize('size', SIZES)
def test_result_and_gradients_are_those_of_attention(interpreted, size):
    arrays = example(*SIZES[size])
    found, expected = (jax.jit(functools.partial(both, f))(*arrays) for f in (interpreted, attend))
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.dtype == theirs.dtype
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


@pytest.mark.parametrize('together', [True, False])
def test_on_gpus_sequences_and_batches_are_taken_in_parts(together):
    """Blocks before the last one, images of a program that are not there, and one array."""
    blocks = attention_gpu.Blocks(16, 16, 4, 1)
    setting = attention_gpu.Setting(*[blocks] * 3, images=2)

    def in_parts(q, k, v, bias=None):
        arrays = [x[:, :, None] for x in (q, k, v)]
        if together:
            arrays = [jnp.concatenate(arrays, axis=2)]
        return attention_gpu.attention(True, tuple(arrays), bias, setting)[:, :, 0]

    arrays = example(3, 37, 37, 1, 16, 1)
    found, expected = (jax.jit(functools.partial(both, f))(*arrays) for f in (in_parts, attend))
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


def test_shares_of_a_batch_may_be_mapped_over(interpreted):
    arrays = example(4, 5, 5, 2, 16, 1)
    shares = [x.reshape(2, 2, *x.shape[1:]) for x in arrays[:4]]

    def each(attention):
        return jax.jit(jax.vmap(functools.partial(both, attention), (0, 0, 0, 0, None)))

    for mine, theirs in zip(
        each(interpreted)(*shares, arrays[4]), each(attend)(*shares, arrays[4]), strict=True
    ):
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


@pytest.mark.slow
def test_a_model_on_gpus_is_the_same_with_it(monkeypatch):
    """Queries, keys and values in one array, split over devices; blocks scanned and computed
    again.
    """
    fields = dict(patch_size=(8, 8), width=32, depth=2, heads=2, relative_position='shared')
    images = jax.random.normal(jax.random.key(0), (4, 24, 24, 3))
    plain = ViT(**fields)
    variables = jax.jit(plain.init)(jax.random.key(1), images)

    def found(model, mesh):
        def loss(variables):
            return jnp.sum(jnp.sin(model.apply(variables, images).tokens))

        everywhere = jax.device_put(variables, sharding.replicated(mesh))
        return jax.jit(sharding.on_mesh(jax.value_and_grad(loss), mesh))(everywhere)

    expected = found(plain, sharding.make_mesh(MeshConfig(), jax.devices()[:1]))
    form = functools.partial(attention_pallas.pallas_self_attention, interpret='gpu')
    monkeypatch.setattr(attention, 'pallas_self_attention', form)
    monkeypatch.setattr(attention, 'reads_one_array', lambda: True)
    of_gpus = found(
        ViT(**fields, attention_kernel='pallas', remat='full'),
        sharding.make_mesh(MeshConfig(data=2, tensor=2)),
    )
    for mine, theirs in zip(*map(jax.tree.leaves, (of_gpus, expected)), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=1e-4, rtol=1e-5)


def test_in_bfloat16_it_is_off_by_what_bfloat16_is(interpreted):
    arrays = example(2, 17, 17, 2, 16, 1, jnp.bfloat16)
    found = jax.jit(functools.partial(both, interpreted))(*arrays)
    exact = jax.jit(functools.partial(both, attend))(*(x.astype(jnp.float32) for x in arrays))
    assert [x.dtype for x in found] == [jnp.bfloat16] * 4 + [jnp.float32]
    for mine, other in zip(found, exact, strict=True):
        # Two roundings of 2**-9: of the weights (or of the logits' gradient), and of the result.
        assert jnp.linalg.norm(mine - other) < 2**-8 * jnp.linalg.norm(other)


@pytest.mark.slow
@pytest.mark.parametrize('biases', [1, 8])
def test_every_device_computes_its_own_images_and_heads(interpreted, biases):
    arrays = example(8, 6, 6, 2, 16, biases)
    expected = jax.jit(functools.partial(both, attend))(*arrays)
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    split = jax.NamedSharding(mesh, jax.P(('data', 'fsdp'), None, 'tensor'))
    of_bias = jax.NamedSharding(mesh, jax.P(('data', 'fsdp') if biases > 1 else None, 'tensor'))
    places = [split, split, split, split, of_bias]
    function = jax.jit(
        sharding.on_mesh(functools.partial(both, interpreted), mesh), out_shardings=tuple(places)
    )
    program = function.lower(*jax.device_put(arrays, places)).compile()
    for kind in ('all-gather', 'all-to-all', 'collective-permute'):
        assert f'{kind}(' not in program.as_text()
    # What images share is summed over them; of images apart no device asks another.
    assert ('all-reduce(' in program.as_text()) == (biases == 1)
    for mine, theirs in zip(program(*jax.device_put(arrays, places)), expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


def test_what_does_not_divide_is_whole_on_every_device(interpreted):
    arrays = example(3, 4, 4, 3, 16, 1)
    mesh = sharding.make_mesh(MeshConfig(data=2, tensor=2))
    everywhere = jax.device_put(arrays, sharding.replicated(mesh))
    found = jax.jit(sharding.on_mesh(functools.partial(both, interpreted), mesh))(*everywhere)
    expected = jax.jit(functools.partial(both, attend))(*arrays)
    for mine, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(mine, theirs, atol=4e-6)


def test_products_of_the_kernel_of_tpus_are_counted_on_any_mesh():
    arrays = example(4, 6, 6, 4, 64, 1)[:3]
    interpreted = functools.partial(pallas_attention, interpret='tpu')
    counted = flops.matmul_flops(jax.make_jaxpr(attend)(*arrays))
    for axes in (dict(data=1), dict(data=2, tensor=2)):
        mesh = sharding.make_mesh(MeshConfig(**axes))
        assert (
            flops.matmul_flops(jax.make_jaxpr(sharding.on_mesh(interpreted, mesh))(*arrays))
            == counted
        )


def traced_for(kind):
    """A mesh of one such device, which need not be there."""
    device = AbstractDevice(device_kind=kind, num_cores=None, platform='any')
    axes = (AxisType.Auto,) * 3
    return jax.sharding.use_abstract_mesh(
        AbstractMesh((1, 1, 1), sharding.AXES, axes, abstract_device=device)
    )


@pytest.mark.parametrize(
    'kind, dtype, width, tokens, shape, expected',
    [
        ('NVIDIA H200', 'bfloat16', 64, 197, None, 'pallas'),
        ('NVIDIA H100 80GB HBM3', 'bfloat16', 64, 197, (1, 12, 197, 197), 'pallas'),
        ('NVIDIA H200', 'bfloat16', 64, 197, (2, 12, 197, 197), 'xla'),  # of every image
        ('NVIDIA H200', 'bfloat16', 64, 577, None, 'xla'),
        ('NVIDIA H200', 'bfloat16', 48, 197, None, 'xla'),
        ('NVIDIA H200', 'float32', 64, 197, None, 'xla'),
        ('NVIDIA A100-SXM4-80GB', 'bfloat16', 64, 197, None, 'xla'),
        ('Tesla T4', 'bfloat16', 64, 197, None, 'xla'),
        ('TPU v5 lite', 'bfloat16', 64, 197, None, 'xla'),
    ],
)
def test_auto_is_the_kernel_where_it_was_measured(kind, dtype, width, tokens, shape, expected):
    bias = shape and jax.ShapeDtypeStruct(shape, jnp.float32)
    given = dict(heads=12, width=width, tokens=tokens, bias=bias)
    with traced_for(kind):
        assert attention.chosen('auto', dtype, **given) == expected
        assert attention.chosen('cudnn', dtype, **given) == 'cudnn'


def test_auto_is_the_plain_form_where_the_devices_are_not_known(monkeypatch):
    monkeypatch.setattr(sharding, 'device_kind', lambda: 'NVIDIA H200')
    given = dict(heads=12, width=64, tokens=197, bias=None)
    assert attention.chosen('auto', 'bfloat16', **given) == 'xla'
    monkeypatch.setitem(sys.modules, 'mim_jax.models.attention_gpu', None)
    with traced_for('NVIDIA H200'):
        assert attention.chosen('auto', 'bfloat16', **given) == 'xla'


@pytest.mark.parametrize('shape', [(2, 1, 1, 7), (1, 1, 5, 7), (1, 3, 1, 1)])
def test_a_bias_that_broadcasts(interpreted, shape):
    """Of a hook that hides tokens, for one."""
    arrays = example(2, 5, 7, 3, 16, 0)
    arrays.append(jnp.asarray(np.random.default_rng(1).normal(size=shape), jnp.float32))
    found, expected = (
        both(form, *arrays[1:2], *arrays[:1], *arrays[2:]) for form in (interpreted, attend)
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape
        np.testing.assert_allclose(mine, theirs, atol=2e-5)


def test_a_row_of_the_least_numbers_is_no_row_without_tokens(interpreted):
    q, _, k, v = example(1, 4, 4, 1, 16, 0)
    bias = jnp.full((1, 1, 4, 4), jnp.finfo(jnp.float32).min)
    np.testing.assert_allclose(
        interpreted(q, k, v, bias=bias), attend(q, k, v, bias=bias), atol=2e-5
    )


def test_a_model_with_it_is_refused_where_it_cannot_run(monkeypatch):
    monkeypatch.setattr(sharding, 'device_kind', lambda: 'Radeon')
    fields = dict(patch_size=(8, 8), width=32, depth=1, heads=2, attention_kernel='pallas')
    with pytest.raises(ValueError, match="'pallas' drops no weights: set attention_dropout to 0"):
        ViT(**fields, attention_dropout=0.1)
    with pytest.raises(
        UserError, match="for TPUs and NVIDIA GPUs since Ampere, and this is 'Radeon'"
    ):
        jax.eval_shape(ViT(**fields).init, jax.random.key(0), jnp.zeros((1, 16, 16, 3)))
    q = jax.ShapeDtypeStruct((1, 1025, 12, 64), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((1, 12, 1025, 1025), jnp.float32)
    of_tpus, of_gpus = (
        functools.partial(pallas_attention, interpret=name) for name in ('tpu', 'gpu')
    )
    jax.eval_shape(of_tpus, q, q, q)
    with pytest.raises(UserError, match='1025 x 1025 of them take too much with a bias'):
        jax.eval_shape(of_tpus, q, q, q, bias=bias)
    with pytest.raises(UserError, match='at most 640 tokens with a bias .* these are 1025: set it'):
        jax.eval_shape(of_gpus, q, q, q, bias=bias)
    wide = jax.ShapeDtypeStruct((1, 17, 2, 48), jnp.bfloat16)
    with pytest.raises(UserError, match='heads 16, 32, 64, 128 wide .* these are 48: set it'):
        jax.eval_shape(of_gpus, wide, wide, wide)


@pytest.mark.slow
def test_it_compiles_for_tpus():
    pytest.importorskip('libtpu', reason='libtpu is not installed')
    from mim_jax.preflight import topology

    mesh = sharding.make_mesh(MeshConfig(data=2, tensor=2), topology.devices('v5e:2x2'))
    split = jax.NamedSharding(mesh, jax.P(('data', 'fsdp'), None, 'tensor'))
    of_bias = jax.NamedSharding(mesh, jax.P(None, 'tensor'))
    q = jax.ShapeDtypeStruct((8, 197, 12, 64), jnp.bfloat16, sharding=split)
    bias = jax.ShapeDtypeStruct((1, 12, 197, 197), jnp.float32, sharding=of_bias)
    function = sharding.on_mesh(functools.partial(both, KERNELS['pallas']), mesh)
    program = jax.jit(function).lower(q, q, q, q, bias).compile().as_text()
    assert program.count('tpu_custom_call') == 2
    assert 'all-gather' not in program
