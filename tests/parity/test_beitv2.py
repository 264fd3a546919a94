"""BEiT v2's losses against BEiT's own modules in transformers, random weights, float32.

`transformers` has BEiT with its loss for masked image modelling; BEiT v2's branch is two more BEiT
layers on the last class token and the patch tokens of an earlier layer, under the same norm and
head.
"""

import os

import jax
import numpy as np
import pytest

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
torch = pytest.importorskip('torch', reason='needs the extra "parity"')
transformers = pytest.importorskip('transformers', reason='needs the extra "parity"')

from mim_jax import assembly, experiment, keys  # noqa: E402
from mim_jax.data import image_fields  # noqa: E402

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(2, 32, 32, 3)).astype(np.float32)
WIDTH, HEADS, DEPTH, BRANCH, CODES = 32, 4, 3, 2, 10


@pytest.fixture(scope='module')
def theirs():
    """BEiT with a code head; its last two layers play the branch."""
    torch.manual_seed(0)
    config = transformers.BeitConfig(
        hidden_size=WIDTH,
        num_hidden_layers=DEPTH + BRANCH,
        num_attention_heads=HEADS,
        intermediate_size=4 * WIDTH,
        image_size=32,
        patch_size=8,
        vocab_size=CODES,
        use_mask_token=True,
        use_shared_relative_position_bias=True,
        layer_scale_init_value=0.1,
        layer_norm_eps=1e-6,
    )
    model = transformers.BeitForMaskedImageModeling(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.05, 0.15)
    return model


@pytest.fixture(scope='module')
def ours(theirs):
    """Our objective with their weights, copied name by name here and not by our importer."""
    config = experiment.default_config('beitv2')
    config.data.update(image_size=(32, 32), batch_size=2)
    config.model.update(
        patch_size=(8, 8),
        width=WIDTH,
        depth=DEPTH,
        heads=HEADS,
        mask_token=True,
        position='none',
        relative_position='shared',
        qkv_bias='qv',
        layer_scale=0.1,
        norm_eps=1e-6,
    )
    config.objective.masking.update(num_masked=6, min_block=2)
    config.objective.update(branch_layer=2, branch_depth=BRANCH)
    config.objective.target.model.update(patch_size=(8, 8), width=16, depth=1, heads=2)
    config.objective.target.update(num_codes=CODES, code_width=4)
    objective = assembly.make_objective(experiment.from_config(config), fields=image_fields())
    variables = objective.init(jax.random.key(0), IMAGES)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}

    def blocks(numbers):
        def stack(name, change=lambda x: x):
            return np.stack([change(state[f'beit.layers.{i}.{name}']) for i in numbers])

        def kernel(name, change=lambda x: x.T):
            return stack(f'{name}.weight', change)

        def split(x):
            return x.T.reshape(WIDTH, HEADS, -1)

        qkv = [kernel(f'attention.{part}_proj', split) for part in 'qkv']
        biases = [
            stack(f'attention.{part}_proj.bias', lambda x: x.reshape(HEADS, -1)) for part in 'qv'
        ]
        return {
            'norm1': norm(stack, 'layernorm_before'),
            'attention': {
                'qkv': {'kernel': np.stack(qkv, axis=2), 'bias': np.stack(biases, axis=1)},
                'out': {
                    'kernel': kernel('attention.o_proj', lambda x: x.T.reshape(HEADS, -1, WIDTH)),
                    'bias': stack('attention.o_proj.bias'),
                },
            },
            'layer_scale1': stack('lambda_1'),
            'norm2': norm(stack, 'layernorm_after'),
            'mlp': {
                'fc1': {
                    'kernel': kernel('mlp.fc1'),
                    'bias': stack('mlp.fc1.bias'),
                },
                'fc2': {'kernel': kernel('mlp.fc2'), 'bias': stack('mlp.fc2.bias')},
            },
            'layer_scale2': stack('lambda_2'),
        }

    def norm(read, name):
        return {'scale': read(f'{name}.weight'), 'bias': read(f'{name}.bias')}

    patches = 'beit.embeddings.patch_embeddings.projection'
    table = state['beit.shared_position_bias.relative_position_bias_table']
    final = norm(state.__getitem__, 'layernorm')
    encoder = {
        'patch_embed': {
            'kernel': state[f'{patches}.weight'].transpose(2, 3, 1, 0).reshape(192, WIDTH),
            'bias': state[f'{patches}.bias'],
        },
        'class_token': state['beit.embeddings.cls_token'].reshape(WIDTH),
        'mask_token': state['beit.embeddings.mask_token'].reshape(WIDTH),
        'relative_position': {
            'patches': table[:-3].reshape(7, 7, HEADS),
            'class_token': table[-3:],
        },
        'blocks': blocks(range(DEPTH)),
        'final_norm': final,
    }
    head = {'kernel': state['lm_head.weight'].T, 'bias': state['lm_head.bias']}
    params = {
        'encoder': encoder,
        'head': {'linear': head},
        'branch': {'blocks': blocks(range(DEPTH, DEPTH + BRANCH))},
    }
    shapes = [jax.tree.map(np.shape, tree) for tree in (params, variables['params'])]
    assert shapes[0] == shapes[1]
    return objective, {**variables, 'params': params}


def test_both_losses(theirs, ours):
    objective, variables = ours
    batch = {'images': IMAGES, 'keys': keys.per_example(jax.random.key(3), 2)}
    loss, _, _ = jax.jit(objective.loss)(variables, batch, jax.random.key(4), 0)
    mask = np.asarray(objective.masking(keys.named(batch['keys'], 'mask'), grid=(4, 4)))
    encodings = objective.targets(variables, IMAGES)
    codes = np.asarray(objective.target.codes(encodings, variables=variables))

    pixels = objective.inputs.normalize(IMAGES)
    pixels = torch.from_numpy(np.asarray(pixels).transpose(0, 3, 1, 2).copy())
    hidden, labels = torch.tensor(mask), torch.tensor(codes).long()
    beit = theirs.beit
    with torch.no_grad():
        tokens = beit.embeddings(pixels, bool_masked_pos=hidden)
        bias = beit.shared_position_bias(window_size=(4, 4))

        early = None
        for number in range(DEPTH):
            tokens = beit.layers[number](tokens, attention_mask=bias)
            early = tokens if number + 1 == objective.branch_layer else early
        branch = torch.cat([tokens[:, :1], early[:, 1:]], dim=1)
        for number in range(DEPTH, DEPTH + BRANCH):
            branch = beit.layers[number](branch, attention_mask=bias)
        expected = 0.0
        for output in (tokens, branch):
            logits = theirs.lm_head(theirs.layernorm(output[:, 1:]))
            expected += torch.nn.functional.cross_entropy(logits[hidden], labels[hidden]).item()
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
