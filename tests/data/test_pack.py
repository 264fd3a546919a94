"""A packed folder holds what the folder holds, and a run on it sees the same."""

import io

import numpy as np
import pytest
from PIL import Image

from mim_jax.data import DataConfig, eval_batches, find, make_source, pack, train_batches
from mim_jax.data.folder import Folder
from mim_jax.data.tfds import Tfds
from mim_jax.errors import UserError


def encoded(seed, size=(24, 20), kind='JPEG'):
    """A file of smooth noise."""
    small = np.random.default_rng(seed).integers(0, 256, (6, 5, 3), np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(small).resize(size[::-1], Image.BICUBIC).save(buffer, kind)
    return buffer.getvalue()


def write(path, data):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)


@pytest.fixture
def photos(tmp_path):
    """A folder of three classes and 20 images, one of them a PNG."""
    root = tmp_path / 'photos'
    for i in range(20):
        write(root / f'class {"cab"[i % 3]}' / f'{i:02}.jpg', encoded(i))
    write(root / 'class c' / '00.jpg', encoded(0, kind='PNG'))
    return root


def sources(root, out, *, split):
    """The folder's split, and the packed one."""
    folder = DataConfig(source=Folder(path=str(root)))
    packed = Tfds(path=str(out.parent), dataset=f'{out.name}:1.0.0')
    return [make_source(c, split=split) for c in (folder, DataConfig(source=packed))]


def assert_equal(folder, packed):
    assert len(folder) == len(packed) and folder.fields == packed.fields
    label = find(folder.fields, 'label')
    assert label is None or label.names == find(packed.fields, 'label').names
    for i in range(len(folder)):
        assert {k: folder[i][k] for k in packed[i]} == packed[i]


def test_a_seed_stores_the_same_images_in_another_order(photos, tmp_path):
    write(photos / 'class a' / 'bad.jpg', b'none')
    out = tmp_path / 'packed' / 'mixed'
    counts = pack.pack(photos, out, holdout=0, shuffle_seed=3, max_corrupt_share=0.1)
    assert counts == {'train': 20}
    packed = Tfds(path=str(out.parent), dataset='mixed:1.0.0')
    want, got = (
        [(item['image'], item['label']) for item in map(source.__getitem__, range(len(source)))]
        for source in (
            make_source(DataConfig(source=Folder(path=str(photos), holdout=0)), split='train'),
            make_source(DataConfig(source=packed), split='train'),
        )
    )
    want = [item for item in want if item[0] != b'none']
    assert got != want and sorted(got) == sorted(want)
    assert len({label for _, label in got[:8]}) > 1  # of the folder's first class there are 8


@pytest.mark.parametrize('records_per_file', [1, 7, 100])
def test_records_and_labels_are_those_of_the_folder(photos, tmp_path, records_per_file):
    out = tmp_path / 'packed' / 'photos_2'
    counts = pack.pack(photos, out, records_per_file=records_per_file)
    assert sum(counts.values()) == 20 and 2 < counts['test'] < 8
    for split in ('train', 'test'):
        assert_equal(*sources(photos, out, split=split))
        files = [p.name for p in out.glob(f'1.0.0/photos_2-{split}.array_record-*-of-*')]
        assert len(files) == -(-counts[split] // records_per_file)


def test_splits_keep_their_names(tmp_path):
    for i in range(6):
        write(
            tmp_path / 'set' / ('train' if i < 4 else 'val') / 'ab'[i % 2] / f'{i}.jpg', encoded(i)
        )
    write(tmp_path / 'set' / 'train' / 'only here' / '9.jpg', encoded(9))
    out = tmp_path / 'packed'
    assert pack.pack(tmp_path / 'set', out) == {'train': 5, 'val': 2}
    for split in ('train', 'val'):
        assert_equal(*sources(tmp_path / 'set', out, split=split))


def test_images_without_classes_and_all_of_a_set(photos, tmp_path):
    assert pack.pack(photos, tmp_path / 'all', holdout=0) == {'train': 20}
    assert pack.pack(photos / 'class a', tmp_path / 'flat') == {'train': 7}
    folder, packed = sources(photos / 'class a', tmp_path / 'flat', split='train')
    assert_equal(folder, packed)
    assert 'label' not in packed[0]


def test_a_run_sees_the_same_batches(photos, tmp_path):
    """Training and evaluation, with the folder's own held-out images."""
    out = tmp_path / 'packed'
    pack.pack(photos, out)
    config = DataConfig(image_size=(16, 16), batch_size=5)
    trained = [train_batches(s, config, seed=3) for s in sources(photos, out, split='train')]
    for _ in range(7):  # two epochs
        one, other = map(next, trained)
        np.testing.assert_equal(one, other)
    held = [eval_batches(s, config, batch_size=4) for s in sources(photos, out, split='test')]
    for one, other in zip(*held, strict=True):
        np.testing.assert_equal(one, other)


def test_larger_images_are_stored_at_the_shorter_side(tmp_path):
    files = [encoded(0, (60, 48)), encoded(1, (33, 90)), encoded(2, (24, 90)), encoded(3, (9, 9))]
    for i, data in enumerate(files):
        write(tmp_path / 'set' / f'{i}.jpg', data)
    pack.pack(tmp_path / 'set', tmp_path / 'packed', shorter_side=24, quality=100)
    _, packed = sources(tmp_path / 'set', tmp_path / 'packed', split='train')
    for i, size in enumerate([(30, 24), (24, 65)]):
        stored = Image.open(io.BytesIO(packed[i]['image']))
        assert stored.format == 'JPEG' and stored.size == size[::-1]
        expected = Image.open(io.BytesIO(files[i])).resize(size[::-1], Image.BICUBIC)
        # Their brightness: a JPEG keeps a quarter of the colours.
        one, other = (np.asarray(image.convert('L')).astype(int) for image in (stored, expected))
        assert np.abs(one - other).mean() < 1.5
    assert [packed[i]['image'] for i in (2, 3)] == files[2:]


def test_unreadable_images_are_named_and_left_out_up_to_a_share(photos, tmp_path, capsys):
    bad = photos / 'class a' / '01.jpg'
    bad.write_bytes(bad.read_bytes()[:-40])
    assert pack.pack(photos, tmp_path / 'packed', holdout=0, max_corrupt_share=0.05) == {
        'train': 19
    }
    assert f'left out: {bad} (JPEG is truncated)' in capsys.readouterr().err
    (photos / 'class c' / '03.jpg').write_bytes(b'nothing')
    before = sorted(tmp_path.iterdir())
    with pytest.raises(UserError, match='2 of 20 images of the split train .*the first: .*01.jpg'):
        pack.pack(photos, tmp_path / 'again', holdout=0, max_corrupt_share=0.05)
    with pytest.raises(UserError, match='none of the images in .*class c can be read'):
        for file in (photos / 'class c').iterdir():
            file.write_bytes(b'nothing')
        pack.pack(photos / 'class c', tmp_path / 'again', max_corrupt_share=1)
    assert sorted(tmp_path.iterdir()) == before


def test_mistakes_are_one_sentence(photos, tmp_path, capsys):
    def said(*arguments):
        assert pack.main([str(argument) for argument in arguments]) == 2
        return capsys.readouterr().err

    full = tmp_path / 'full'
    write(full / 'file', b'')
    assert f'--out={full} exists already' in said(photos, f'--out={full}')
    assert 'the name of the dataset, which has small letters' in said(photos, '--out=My-photos')
    assert 'there is no folder' in said(tmp_path / 'none', f'--out={tmp_path}/packed')
    (photos / 'class a').rename(photos / 'class a ')
    assert "'class a ' in" in said(photos, f'--out={tmp_path}/packed')
    write(tmp_path / 'set' / 'train' / 'a' / '0.jpg', encoded(0))
    write(tmp_path / 'set' / 'test' / '0.jpg', encoded(0))
    assert 'splits of a dataset must hold the same' in said(
        tmp_path / 'set', f'--out={tmp_path}/packed'
    )
    assert not (tmp_path / 'packed').exists()


@pytest.mark.slow
def test_processes_write_the_same_files(photos, tmp_path, capsys):
    """The command line, which says with which flags a run reads them."""
    for workers in (0, 2):
        arguments = [f'--out={tmp_path}/{workers}/packed', f'--workers={workers}', '--holdout=0']
        assert pack.main([str(photos), '--shorter_side=12', *arguments]) == 0
        assert f'--config.data.source.path={tmp_path}/{workers} ' in capsys.readouterr().out
    one, other = (sorted((tmp_path / str(w) / 'packed' / '1.0.0').iterdir()) for w in (0, 2))
    assert len(one) == 4 and [p.name for p in one] == [p.name for p in other]
    assert [p.read_bytes() for p in one] == [p.read_bytes() for p in other]
