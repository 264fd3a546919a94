"""DALL-E's tokenizer against its convolutions in PyTorch, and from a file of its names."""

import jax
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models import ViT
from mim_jax.targets import DalleTokenizer
from mim_jax.weights import native

torch = pytest.importorskip('torch')
functional = torch.nn.functional

INPUTS = Inputs((32, 48), 3, (0.5,) * 3, (0.25,) * 3)
TARGET = DalleTokenizer(width=8, blocks=2, num_codes=5).bind(ViT(patch_size=(16, 16)), INPUTS)


@pytest.fixture(scope='module')
def tensors():
    """Random tensors under the names of the released encoder; biases too."""
    rng = np.random.default_rng(0)
    return {
        name.replace('/', '.'): rng.normal(0, 0.5, shape).astype(np.float32)
        for name, shape in TARGET.shapes().items()
    }


def logits_in_pytorch(tensors, images):
    """Of images [B,3,H,W] in [0, 1]: four groups of two blocks, halved behind the first three."""

    def conv(name, x):
        w, b = (torch.tensor(tensors[f'blocks.{name}.{part}']) for part in 'wb')
        return functional.conv2d(x, w, b, padding=(w.shape[-1] - 1) // 2)

    x = conv('input', 0.8 * images + 0.1)
    for group in (1, 2, 3, 4):
        for block in (1, 2):
            name = f'group_{group}.block_{block}'
            y = x
            for layer in (1, 2, 3, 4):
                y = conv(f'{name}.res_path.conv_{layer}', functional.relu(y))
            if group > 1 and block == 1:
                x = conv(f'{name}.id_path', x)
            x = x + y / 64
        if group < 4:
            x = functional.max_pool2d(x, 2)
    return conv('output.conv', functional.relu(x))


def test_the_logits_and_the_file(tensors, tmp_path):
    torch.save({name: torch.tensor(x) for name, x in tensors.items()}, tmp_path / 'dalle.pt')
    named = TARGET.__class__(weights=str(tmp_path / 'dalle.pt'), width=8, blocks=2, num_codes=5)
    params = named.bind(TARGET.encoder, INPUTS).load()
    images = np.random.default_rng(1).uniform(size=(2, 32, 48, 3)).astype(np.float32)
    found = jax.jit(TARGET)({'teacher': params}, images)
    assert found.shape == (2, 2 * 3, 5)
    # Of 16 pixels, one patch's, 8 are left: Lanczos, to within what the resizing differs by.
    small = np.clip(jax.image.resize(images, (2, 16, 24, 3), 'lanczos3'), 0, 1)
    expected = logits_in_pytorch(tensors, torch.tensor(small).permute(0, 3, 1, 2))
    expected = expected.permute(0, 2, 3, 1).reshape(2, 6, 5).numpy()
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)
    np.testing.assert_array_equal(TARGET.codes(found, variables={}), expected.argmax(axis=-1))


def test_the_published_encoders_names_and_sizes():
    """One convolution before, one behind, four in each of eight blocks, three beside them."""
    shapes = DalleTokenizer().shapes()
    assert len(shapes) == 2 * (1 + 8 * 4 + 3 + 1)
    assert shapes['blocks/input/w'] == (256, 3, 7, 7)
    assert shapes['blocks/group_2/block_1/id_path/w'] == (512, 256, 1, 1)
    assert 'blocks/group_1/block_1/id_path/w' not in shapes
    assert shapes['blocks/group_4/block_2/res_path/conv_4/w'] == (2048, 512, 1, 1)
    assert shapes['blocks/output/conv/w'] == (8192, 2048, 1, 1)


def test_a_file_that_does_not_fit_is_one_sentence(tensors, tmp_path):
    with pytest.raises(UserError, match='config.objective.target.weights is not set'):
        TARGET.load()
    path = tmp_path / 'other.safetensors'
    native.save(path, native.unflatten({'blocks.input.w': tensors['blocks.input.w']}), metadata={})
    other = DalleTokenizer(weights=str(path), width=8, blocks=2, num_codes=5)
    with pytest.raises(UserError, match='does not fit the model; missing: blocks/') as error:
        other.bind(TARGET.encoder, INPUTS).load()
    assert '\n' not in str(error.value)
