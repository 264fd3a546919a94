import dataclasses
import os
import sys
import types

import cv2
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import data, panels
from mim_jax.data import Crop, DataConfig, View, eval_views
from mim_jax.errors import UserError
from mim_jax.visualize import __main__ as command


@dataclasses.dataclass(frozen=True)
class Hidden:
    grid: tuple[int, int] = (4, 4)
    # Of a view beside the images, and none where it is None.
    second: View | None = None

    def views(self, data):
        return {'images': data.view()} | ({'second': self.second} if self.second else {})

    def pictures(self, variables, batch, key, step):
        return {'mask': [panels.Mask(jnp.zeros((len(batch['images']), 16), bool))]}

    def features(self, variables, images):
        return types.SimpleNamespace(tokens=images.reshape(len(images), 16, -1))


def load(config, *, second=None, names, num):
    """What `command.load_batch` gives of images and a second view."""
    views = eval_views(config, Hidden(second=second).views(config))
    return command.load_batch(config, views, names=names, num=num)


@pytest.fixture
def run(monkeypatch):
    """A restored run of step 7, of the embedded scenes."""
    config = DataConfig(image_size=(32, 32))
    program = types.SimpleNamespace(
        run=types.SimpleNamespace(data=config, seed=0),
        objective=Hidden(),
        mesh=None,
        views=Hidden().views(config),
    )
    steps = []

    def restore_run(workdir, *, step=None):
        steps.append(step)
        return program, {}, 7

    module = types.SimpleNamespace(restore_run=restore_run)
    monkeypatch.setitem(sys.modules, 'mim_jax.restoring', module)
    return steps


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / 'photos' / 'deep'
    folder.mkdir(parents=True)
    for i, size in enumerate([(60, 40), (33, 90), (32, 32)]):
        cv2.imwrite(str(folder / f'{i}.jpg'), np.full((*size, 3), 60 * i + 60, np.uint8))
    (folder / 'notes.txt').write_text('no image')
    return tmp_path / 'photos'


def test_photos_of_any_size(run, photos, tmp_path, capsys):
    paths = command.main([f'--workdir={tmp_path}', f'--images={photos}', '--num=8', '--step=7'])
    assert [p.name for p in paths] == ['mask_000007.png', 'features_000007.png']
    assert capsys.readouterr().out.split() == [str(p) for p in paths]
    assert paths[0].parent == tmp_path / 'pictures' / 'images' and run == [7]
    height = 3 * (32 * 7 + 5)
    words = cv2.imread(str(paths[0])).shape[0] - height  # beside three rows
    assert 60 < words < 120  # heading, titles, legend


def test_pictures_of_the_run(run, tmp_path):
    paths = command.main([f'--workdir={tmp_path}', '--num=2'])
    assert {p.parent for p in paths} == {tmp_path / 'pictures'} and run == [None]


def test_num_and_out(run, photos, tmp_path):
    command.main(
        [f'--workdir={tmp_path}', f'--images={photos}', '--num=1', f'--out={tmp_path / "here"}']
    )
    assert cv2.imread(str(tmp_path / 'here' / 'mask_000007.png')).shape[0] < 2 * 32 * 7
    assert not (tmp_path / 'pictures').exists()


def test_evaluation_split_by_default():
    config = DataConfig(image_size=(32, 40))
    images = load(config, names=[], num=2)['images']
    assert images.shape == (2, 32, 40, 3) and images.dtype == np.uint8
    maps = load(config, second=config.view(maps=('mask',)), names=[], num=2)
    assert maps['second_mask'].shape == (2, 32, 40)


def test_loose_files_have_images_and_nothing_else(photos):
    config = DataConfig(image_size=(32, 32), crop=Crop(mode='none'))
    small = config.view(image_size=(8, 8))
    batch = load(config, second=small, names=[str(photos)], num=3)
    assert batch['second'].shape == (3, 8, 8, 3)
    for second in (config.view(of='other'), config.view(maps=('mask',))):
        with pytest.raises(UserError, match='which a set of loose files .--images. does not have'):
            load(config, second=second, names=[str(photos)], num=3)


def test_bad_files_are_user_errors(run, photos, tmp_path):
    config = DataConfig(image_size=(32, 32))
    with pytest.raises(UserError, match='no such file'):
        load(config, names=[str(tmp_path / 'nothing')], num=2)
    (tmp_path / 'empty').mkdir()
    with pytest.raises(UserError, match='no images'):
        load(config, names=[str(tmp_path / 'empty')], num=2)
    broken = tmp_path / 'broken.jpg'
    broken.write_bytes(b'not a photo')
    with pytest.raises(UserError, match='can be read'):
        load(config, names=[str(broken)], num=2)
    good = photos / 'deep' / '1.jpg'
    assert len(load(config, names=[str(broken), str(good)], num=2)['images']) == 1


def test_num_is_limited(capsys):
    with pytest.raises(SystemExit):
        command.main(['--workdir=x', '--num=0'])
    assert '--num' in capsys.readouterr().err


def test_what_is_no_file_is_no_image(run, photos, tmp_path, monkeypatch):
    (photos / 'deep' / 'a.png').mkdir()
    assert [path.name for path in command.find_images([str(photos)])] == ['0.jpg', '1.jpg', '2.jpg']
    os.mkfifo(tmp_path / 'pipe.png')
    with pytest.raises(UserError, match='no such file'):
        command.find_images([str(tmp_path / 'pipe.png')])
    read = data.folder.read_file
    lost = photos / 'deep' / '0.jpg'
    # It may go, or be closed to the reader, once it was found.
    monkeypatch.setattr(data.folder, 'read_file', lambda p: read(photos if p == lost else p))
    config = DataConfig(image_size=(32, 32))
    assert len(load(config, names=[str(photos)], num=3)['images']) == 2
    with pytest.raises(UserError, match='None of the images can be read .*0.jpg'):
        load(config, names=[str(lost)], num=1)


@pytest.mark.parametrize(
    ('arguments', 'said'),
    [
        (['--workdir=x', '--image_size=32'], '--image_size needs --teacher'),
        (['--workdir=x', '--mean=0.5'], '--mean needs --teacher'),
        (['--workdir=x', '--std=0.5'], '--std needs --teacher'),
        (['--workdir=x', '--model={"heads": 3}'], '--model needs --teacher'),
        (['--teacher=x', '--images=y', '--step=0'], '--step needs --workdir'),
        (['--workdir=x', '--imag=y'], 'unrecognized arguments: --imag=y'),
    ],
)
def test_flags_without_effect_are_refused(arguments, said, capsys):
    with pytest.raises(SystemExit):
        command.main(arguments)
    assert said in capsys.readouterr().err
