"""PyTorch files: read without executing anything in them."""

import pickle

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs the extra "parity"')

from mim_jax.errors import UserError  # noqa: E402
from mim_jax.weights import reading  # noqa: E402
from mim_jax.weights.__main__ import main  # noqa: E402


class Bomb:
    """Unpickled, it writes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), 'w')


@pytest.mark.parametrize('zipped', [True, False])
def test_code_in_a_pickle_is_refused_and_not_run(zipped, tmp_path, capsys):
    mark = tmp_path / 'mark'
    state = {'weight': torch.zeros(2), 'bomb': Bomb(mark)}
    file = tmp_path / 'theirs.pth'
    torch.save(state, file, _use_new_zipfile_serialization=zipped)
    assert main(['import', str(file), f'--out={tmp_path / "ours"}']) == 2
    error = capsys.readouterr().err
    assert 'is refused' in error and 'it holds io.open, which could execute code' in error
    assert error.count('\n') == 1
    assert [p.name for p in tmp_path.iterdir()] == ['theirs.pth']
    torch.load(file, weights_only=False)  # it would have been run
    assert mark.exists()


def test_a_plain_pickle_with_code_is_refused(tmp_path):
    mark, file = tmp_path / 'mark', tmp_path / 'theirs.bin'
    file.write_bytes(pickle.dumps({'weight': Bomb(mark)}))
    with pytest.raises(UserError, match='damaged, or of another kind'):
        reading.read(file)
    assert not mark.exists()


@pytest.mark.parametrize('kept', [0, 10, 0.5, 0.99])
def test_a_truncated_file_is_refused(kept, tmp_path):
    file = tmp_path / 'theirs.pt'
    torch.save({'weight': torch.zeros(1000)}, file)
    data = file.read_bytes()
    file.write_bytes(data[: int(kept * len(data)) if kept < 1 else kept])
    with pytest.raises(UserError, match=r'theirs\.pt cannot be read'):
        reading.read(file)


def test_wrappers_and_half_precision(tmp_path):
    state = {
        'a': torch.tensor([1.5], dtype=torch.bfloat16),
        'b': torch.tensor([2.5], dtype=torch.float16),
        'n': torch.tensor(3),
    }
    torch.save(
        {'model': {'state_dict': state, 'best': 3.0}, 'step': torch.tensor(1)}, tmp_path / 'x.pt'
    )
    tensors = reading.read(tmp_path / 'x.pt').tensors
    assert {n: t.dtype for n, t in tensors.items()} == {
        'a': np.float32,
        'b': np.float32,
        'n': np.int64,
    }
    assert (tensors['a'][0], tensors['b'][0]) == (1.5, 2.5)
    torch.save([1, 2], tmp_path / 'y.pt')
    with pytest.raises(UserError, match='holds no tensors by name'):
        reading.read(tmp_path / 'y.pt')


def test_torchscript_is_refused_with_the_way_round_it(tmp_path):
    module = torch.jit.trace(torch.nn.Linear(2, 2), torch.zeros(1, 2))
    torch.jit.save(module, tmp_path / 'clip.pt')
    with pytest.raises(UserError, match=r'TorchScript program.*state_dict'):
        reading.read(tmp_path / 'clip.pt')
