"""PyTorch files: read without executing anything in them."""

import importlib.util
import os
import pickle
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip('torch', reason='needs the extra "parity"')

from mim_jax.errors import UserError  # noqa: E402
from mim_jax.weights import native, reading  # noqa: E402
from mim_jax.weights.__main__ import main  # noqa: E402


def _neighbour(name):
    spec = importlib.util.spec_from_file_location(name, Path(__file__).parent / f'{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


foreign, originals = _neighbour('foreign'), _neighbour('originals')

pytestmark = pytest.mark.filterwarnings('ignore:`torch.jit', 'ignore::torch.jit.TracerWarning')


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


class TracedCLIP(originals.OpenAICLIP):
    """With the counters that OpenAI's archives hold beside the weights."""

    def __init__(self):
        super().__init__()
        for name, value in (('input_resolution', 32), ('context_length', 10), ('vocab_size', 30)):
            self.register_buffer(name, torch.tensor(value))
        self.visual.register_buffer('input_resolution', torch.tensor(32))

    def forward(self, images, ids):
        return self.visual(images)[1], self.encode_text(ids)


@pytest.fixture(scope='module')
def clip():
    """A CLIP of OpenAI's naming, and the program that tracing makes of it."""
    torch.manual_seed(0)
    model = foreign.randomised(TracedCLIP())
    inputs = torch.zeros(1, 3, 32, 32), torch.tensor([[3, 9, 29]])
    return model, torch.jit.trace(model, inputs, check_trace=False)


def check_against(state, tensors):
    assert tensors.keys() == state.keys()
    for name, tensor in state.items():
        expected = (tensor.float() if tensor.is_floating_point() else tensor).numpy()
        assert tensors[name].dtype == expected.dtype
        np.testing.assert_array_equal(tensors[name], expected)


@pytest.mark.parametrize('dtype', [torch.float32, torch.float16])
def test_a_torchscript_clip_is_imported_as_its_state_dict(dtype, clip, tmp_path, monkeypatch):
    file = tmp_path / 'clip.pt'
    torch.jit.save(clip[1], file)
    torch.jit.save(torch.jit.load(file).to(dtype), file)
    state = torch.jit.load(file).state_dict()
    assert {t.dtype for t in state.values()} == {dtype, torch.int64}
    check_against(state, reading.read(file).tensors)

    torch.save(state, tmp_path / 'state.pt')
    assert main(['import', str(tmp_path / 'state.pt'), f'--out={tmp_path / "state"}']) == 0
    monkeypatch.setitem(sys.modules, 'torch', None)  # not needed
    assert main(['import', str(file), f'--out={tmp_path / "clip"}']) == 0
    for name in ('encoder.safetensors', 'text.safetensors'):
        ours, metadata = native.read_tensors(tmp_path / 'clip' / name)
        theirs, expected = native.read_tensors(tmp_path / 'state' / name)
        assert metadata == expected and ours.keys() == theirs.keys()
        assert all(np.array_equal(value, theirs[key]) for key, value in ours.items())


def test_features_of_a_torchscript_clip(clip, tmp_path):
    model, program = clip
    torch.jit.save(program, tmp_path / 'clip.pt')
    vit, params = foreign.read(tmp_path / 'clip.pt', tmp_path / 'ours')
    images = foreign.images(32, 32)
    with torch.no_grad():
        states, embedding = model.visual(foreign.to_torch(images))
    encoded = foreign.compare_blocks(vit, params, states, images=images)
    foreign.compare(encoded.class_token @ params['projection']['kernel'], embedding)


class Toy(torch.nn.Module):
    """Views that share a storage, every kind of number, and attributes that are no tensors."""

    def __init__(self):
        super().__init__()
        whole = torch.arange(24.0).reshape(4, 6) - 3.5
        views = {'whole': whole, 'turned': whole.T, 'cut': whole[1:3, 1::2], 'row': whole[3]}
        numbers = [torch.bfloat16, torch.float64, torch.int32, torch.int16, torch.int8, torch.bool]
        for name, view in views.items():
            self.register_buffer(name, view)
        for i, dtype in enumerate([*numbers, torch.uint8]):
            self.register_buffer(f'number{i}', whole.abs().to(dtype))
        self.register_buffer('empty', torch.zeros(0, 3))
        self.register_buffer('absent', None)
        self.counts, self.inner = [1, 2], torch.nn.Sequential(torch.nn.Linear(2, 3))
        self.listed, self.place = [whole], torch.device('cpu')

    def forward(self, x):
        total = self.inner(x).sum() + self.cut.sum() + self.turned.sum() + self.row.sum()
        return total + self.counts[0] + self.listed[0].sum() + torch.ones(1, device=self.place)


@pytest.fixture
def archive(tmp_path):
    torch.jit.save(torch.jit.script(Toy()), tmp_path / 'toy.pt')
    return tmp_path / 'toy.pt'


def test_views_of_storages_and_every_number(archive):
    tensors = reading.read(archive).tensors
    assert 'inner.0.weight' in tensors
    check_against(torch.jit.load(archive).state_dict(), tensors)


def rewrite(file, start, *, change):
    """Replaces the members whose names start so by `change` of their bytes; None leaves out."""
    with zipfile.ZipFile(file) as source:
        members = {name: source.read(name) for name in source.namelist()}
    names = [name for name in members if name.split('/', 1)[1].startswith(start)]
    assert names
    members.update({name: change(members[name]) for name in names})
    with zipfile.ZipFile(file, 'w') as target:
        for name, data in members.items():
            if data is not None:
                target.writestr(name, data)


def replaced(old, new):
    def change(data):
        assert old in data
        return data.replace(old, new, 1)

    return change


def test_the_program_in_an_archive_is_not_looked_at(archive):
    rewrite(archive, 'code/', change=lambda data: b'\x00 no program')
    assert reading.read(archive).tensors['inner.0.weight'].shape == (3, 2)


@pytest.mark.parametrize('name', ['io open', 'os system', 'builtins getattr', 'torch._utils os'])
def test_an_archive_with_another_global_is_refused_and_not_run(name, archive, tmp_path, capsys):
    mark = tmp_path / 'mark'
    forged = pickle.dumps(Bomb(mark), protocol=2)
    forged = replaced(b'cio\nopen\n', b'c' + name.replace(' ', '\n').encode() + b'\n')(forged)
    rewrite(archive, 'data.pkl', change=lambda data: forged)
    assert main(['import', str(archive), f'--out={tmp_path / "ours"}']) == 2
    error = capsys.readouterr().err
    assert f'is refused: beside tensors and plain values it holds {name.replace(" ", ".")}' in error
    assert error.count('\n') == 1 and os.listdir(tmp_path) == ['toy.pt']


def test_what_a_pickle_sets_on_a_stand_in_is_gone_with_it(archive):
    # Toy.__setstate__ = OrderedDict, which would lose the attributes of every module after it.
    harm = b'c__torch__\nToy\n(N}X\x0c\x00\x00\x00__setstate__ccollections\nOrderedDict\nstb0'
    rewrite(archive, 'data.pkl', change=lambda data: data[:2] + harm + data[2:])
    assert reading.read(archive).tensors['cut'].shape == (2, 3)


SHAPE = b'(K\x02K\x03t', b'(K\x06K\x02t'  # shape and strides of `cut`, as PyTorch writes them


@pytest.mark.parametrize(
    ('member', 'change', 'sentence'),
    [
        ('data.pkl', lambda data: None, 'without its data.pkl'),
        ('data.pkl', lambda data: data[:-40], 'damaged, or of another kind'),
        ('data.pkl', lambda data: b'', 'damaged, or of another kind'),
        ('data.pkl', lambda data: pickle.dumps([1]), 'damaged, or of another kind'),
        ('data.pkl', replaced(SHAPE[0], b'(K\x09K\x03t'), 'cut reaches beyond its storage of 24'),
        ('data.pkl', replaced(SHAPE[1], b'(K\x60K\x02t'), 'cut reaches beyond its storage of 24'),
        (
            'data.pkl',
            replaced(SHAPE[1], b'(J\xff\xff\xff\xffK\x02t'),
            'cut reaches beyond its storage',
        ),
        ('data.pkl', replaced(SHAPE[1], b'(K\x02t'), 'damaged, or of another kind'),
        ('data.pkl', replaced(b'FloatStorage', b'LooseStorage'), 'holds torch.LooseStorage'),
        ('data/0', lambda data: data[:-1], 'reaches beyond its storage of 23 values'),
        ('data/0', lambda data: None, 'damaged, or of another kind'),
    ],
)
def test_a_damaged_archive_is_one_sentence(member, change, sentence, archive):
    rewrite(archive, member, change=change)
    with pytest.raises(UserError, match=rf'toy\.pt.*{sentence}') as found:
        reading.read(archive)
    assert '\n' not in str(found.value)


def test_overwritten_and_truncated_archives_are_one_sentence(archive):
    data = archive.read_bytes()
    storage = np.arange(24, dtype='<f4') - 3.5
    place = data.index(storage.tobytes())
    archive.write_bytes(data[:place] + b'\xff' + data[place + 1 :])
    with pytest.raises(UserError, match='damaged'):
        reading.read(archive)
    name = data.rindex(b'toy/data.pkl')  # in the zip's directory
    for damaged in (data[:name] + b'\xff' + data[name + 1 :], data[: len(data) // 2], data[:-9]):
        archive.write_bytes(damaged)
        with pytest.raises(UserError, match='damaged'):
            reading.read(archive)


def test_an_archive_of_torch_save_is_compared_with_its_checksums(tmp_path):
    file = tmp_path / 'w.pth'
    values = torch.arange(1000, dtype=torch.float32)
    torch.save({'a.weight': values, 'b.weight': values[:1]}, file)
    content = file.read_bytes()
    place = content.index(values.numpy().tobytes()) + 400
    file.write_bytes(content[:place] + b'\xff' + content[place + 1 :])
    assert not torch.equal(torch.load(file)['a.weight'], values)  # PyTorch does not look
    with pytest.raises(UserError, match='w.pth cannot be read: it is damaged .*data/0'):
        reading.read(file)


def test_an_archive_without_checksums_is_read(tmp_path):
    if not hasattr(torch.serialization, 'set_crc32_options'):
        pytest.skip('this PyTorch always writes checksums')
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({'a.weight': torch.ones(3), 'b.weight': torch.ones(3)}, tmp_path / 'w.pth')
    finally:
        torch.serialization.set_crc32_options(True)
    assert reading.read(tmp_path / 'w.pth').tensors.keys() == {'a.weight', 'b.weight'}


def test_a_tensor_of_more_numbers_than_the_file_holds_is_refused(tmp_path):
    large = torch.ones(1).expand(10**6, 10**6)
    torch.save({'a.weight': large, 'b.weight': torch.ones(1)}, tmp_path / 'w.pth')
    with pytest.raises(UserError, match='no plain arrays .*is more than the file holds'):
        reading.read(tmp_path / 'w.pth')
