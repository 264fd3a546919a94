"""UPerNet, its auxiliary head and BEiT's pyramid against transformers: same weights, float32."""

import os

import jax
import numpy as np
import pytest

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
torch = pytest.importorskip('torch', reason='needs the extra "parity"')
transformers = pytest.importorskip('transformers', reason='needs the extra "parity"')

from transformers.models.beit.modeling_beit import BeitFCNHead, BeitFPNNeck, BeitUperHead  # noqa: E402
from transformers.models.upernet.modeling_upernet import UperNetFCNHead, UperNetHead  # noqa: E402

from mim_jax.models.resizing import adaptive_average, bilinear  # noqa: E402
from mim_jax.models.segmenters import FCNHead, Pyramid, UPerNet, UPerNetDecoder  # noqa: E402

RNG = np.random.default_rng(0)
WIDTH, CHANNELS, CLASSES = 16, 12, 7
TOLERANCE = {'rtol': 1e-5, 'atol': 1e-5}


def made(module):
    """In evaluation, with weights, running averages and all drawn at random."""
    with torch.no_grad():
        for name, x in [*module.named_parameters(), *module.named_buffers()]:
            if x.dtype.is_floating_point:
                values = RNG.normal(size=tuple(x.shape)) * 0.3
                positive = 'running_var' in name
                x.copy_(torch.from_numpy(np.abs(values) + 0.5 if positive else values))
    return module.eval()


def conv(x):
    return x.weight.detach().numpy().transpose(2, 3, 1, 0)


def norm(x):
    """(parameters, state) of batch norm."""
    params = {'scale': x.weight.detach().numpy(), 'bias': x.bias.detach().numpy()}
    return params, {'mean': x.running_mean.numpy(), 'variance': x.running_var.numpy()}


def unit(x):
    """(parameters, state) of a convolution with norm."""
    layers = dict(x.named_children())
    kernel = layers.get('conv', layers.get('convolution'))
    params, state = norm(layers.get('batch_norm', layers.get('normalization')))
    return {'conv': {'kernel': conv(kernel)}, 'norm': params}, {'norm': state}


def dense(x):
    return {'kernel': conv(x)[0, 0], 'bias': x.bias.detach().numpy()}


def collected(units, classifier):
    """Variables of named units and a last layer."""
    pairs = {name: unit(x) for name, x in units.items()}
    params = {name: params for name, (params, _) in pairs.items()}
    params['classify'] = dense(classifier)
    return {'params': params, 'state': {name: state for name, (_, state) in pairs.items()}}


def decoder_variables(theirs, bottleneck):
    blocks = [list(block.children()) for block in theirs.psp_modules.blocks]
    units = {f'pools_{i}': x for i, (_, x) in enumerate(blocks)}
    units |= {f'laterals_{i}': x for i, x in enumerate(theirs.lateral_convs)}
    units |= {f'smooth_{i}': x for i, x in enumerate(theirs.fpn_convs)}
    units |= {'bottleneck': bottleneck, 'fuse': theirs.fpn_bottleneck}
    return collected(units, theirs.classifier)


def doubled(x):
    kernel = x.weight.detach().numpy().transpose(0, 2, 3, 1)
    return {'kernel': kernel, 'bias': x.bias.detach().numpy()}


def pyramid_variables(theirs):
    params, state = norm(theirs.fpn1.normalization)
    return {
        'params': {
            'double1': doubled(theirs.fpn1.conv_transpose1),
            'norm': params,
            'double2': doubled(theirs.fpn1.conv_transpose2),
            'double': doubled(theirs.fpn2),
        },
        'state': {'norm': state},
    }


def to_torch(x):
    return torch.from_numpy(np.ascontiguousarray(np.transpose(x, (0, 3, 1, 2))))


def compare(ours, theirs):
    np.testing.assert_allclose(ours, theirs.detach().numpy().transpose(0, 2, 3, 1), **TOLERANCE)


def levels():
    """Four levels of a map of 7x5 tokens."""
    sizes = (28, 20), (14, 10), (7, 5), (3, 2)
    return [RNG.normal(size=(2, *size, WIDTH)).astype(np.float32) for size in sizes]


@pytest.mark.parametrize('size', [(5, 4), (14, 9), (3, 20), (7, 5)])
def test_resizing_is_pytorchs(size):
    x = RNG.normal(size=(2, 7, 5, 3)).astype(np.float32)
    resize = torch.nn.functional.interpolate
    compare(bilinear(x, size), resize(to_torch(x), size=size, mode='bilinear', align_corners=False))
    for size in ((1, 1), (2, 2), (3, 3), (6, 6), (8, 8), (9, 4)):
        compare(adaptive_average(x, size), torch.nn.AdaptiveAvgPool2d(size)(to_torch(x)))


def test_upernet_and_its_auxiliary_head():
    config = transformers.UperNetConfig(
        backbone_config=transformers.SwinConfig(),
        hidden_size=CHANNELS,
        num_labels=CLASSES,
        auxiliary_channels=8,
        auxiliary_in_channels=None,
    )
    maps = levels()
    theirs = made(UperNetHead(config, in_channels=[WIDTH] * 4))
    decoder = UPerNetDecoder(CLASSES, CHANNELS, tuple(config.pool_scales), 0.1)
    variables = decoder_variables(theirs, theirs.bottleneck)
    expected = theirs([to_torch(x) for x in maps])
    assert expected.std() > 0.1
    compare(jax.jit(decoder.apply)(variables, maps), expected)
    theirs = made(UperNetFCNHead(config, in_channels=[WIDTH] * 4))
    variables = collected({'unit': theirs.convs[0]}, theirs.classifier)
    head = FCNHead(CLASSES, 8, 0.1)
    compare(jax.jit(head.apply)(variables, maps[2]), theirs([to_torch(x) for x in maps]))


def test_beits_pyramid_and_both_heads():
    config = transformers.BeitConfig(hidden_size=WIDTH, num_labels=CLASSES, auxiliary_channels=8)
    neck, decode, auxiliary = (
        made(kind(config)) for kind in (BeitFPNNeck, BeitUperHead, BeitFCNHead)
    )
    maps = [RNG.normal(size=(2, 7, 5, WIDTH)).astype(np.float32) for _ in range(4)]
    pyramid = neck(tuple(to_torch(x) for x in maps))
    variables = pyramid_variables(neck)
    found = jax.jit(lambda v, m: Pyramid().apply(v, m, train=False))(variables, maps)
    assert [x.shape[1:3] for x in found] == [(28, 20), (14, 10), (7, 5), (3, 2)]
    for ours, theirs in zip(found, pyramid, strict=True):
        compare(ours, theirs)
    # The whole head, as a config has it: BEiT's is as wide as its encoder.
    parts = {
        'pyramid': variables,
        'decoder': decoder_variables(decode, decode.psp_bottleneck),
        'auxiliary': collected({'unit': auxiliary.convs[0]}, auxiliary.classifier),
    }
    variables = {
        kind: {name: part[kind] for name, part in parts.items()} for kind in ('params', 'state')
    }
    head = UPerNet(channels=WIDTH, auxiliary_channels=8)
    options = {'width': WIDTH, 'depth': 12, 'grid': (7, 5), 'classes': CLASSES, 'dtype': 'float32'}
    fresh = head.init(jax.random.key(0), **options)
    jax.tree.map(lambda a, b: np.testing.assert_equal(a.shape, b.shape), fresh, variables)
    assert head.taps(12) == (4, 6, 8, 12) and head.taps(24) == (8, 12, 16, 24)
    options = {'classes': CLASSES, 'dtype': 'float32'}
    ((weight, logits), (other, auxiliary_logits)), state = head.apply(variables, maps, **options)
    assert (weight, other) == (1.0, 0.4) and state is variables['state']
    compare(logits, decode(list(pyramid)))
    compare(auxiliary_logits, auxiliary(list(pyramid)))


def test_batch_norm_in_training_and_its_averages():
    """A step of the auxiliary head in training, its gradient too."""
    config = transformers.BeitConfig(hidden_size=WIDTH, num_labels=CLASSES, auxiliary_channels=8)
    theirs = made(BeitFCNHead(config)).train()
    x = levels()[2]
    variables = collected({'unit': theirs.convs[0]}, theirs.classifier)
    variables = jax.tree.map(np.copy, variables)  # theirs change in place
    keys = jax.random.split(jax.random.key(0), 2)
    head = FCNHead(CLASSES, 8, 0.0)
    logits, changed = head.apply(variables, x, keys=keys, mutable=['state'])
    seen = to_torch(x).requires_grad_()
    expected = theirs([None, None, seen, None])
    compare(logits, expected)
    _, state = norm(theirs.convs[0].normalization)
    for name, value in changed['state']['unit']['norm'].items():
        np.testing.assert_allclose(value, state[name], **TOLERANCE)
    (expected**2).sum().backward()

    def loss(x):
        return (head.apply(variables, x, keys=keys, mutable=['state'])[0] ** 2).sum()

    compare(jax.grad(loss)(x), seen.grad * torch.ones(1))
