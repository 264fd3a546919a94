"""The sheet of a teacher whose tokens are known: a patch's mean colour."""

import dataclasses

import cv2
import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.models.vit import ViT
from mim_jax.teachers import Loaded
from mim_jax.visualize import __main__ as command
from mim_jax.visualize import teacher as pictures_of_teacher
from mim_jax.visualize.teacher import read_photo, teacher_sheet, whole_patches


@dataclasses.dataclass(frozen=True)
class MeanColours:
    model: ViT = ViT(patch_size=(8, 8), width=16, depth=1, heads=2)

    def tokens(self, params, images):
        batch, height, width, channels = images.shape
        patches = images.reshape(batch, height // 8, 8, width // 8, 8, channels)
        return patches.mean(axis=(2, 4)).reshape(batch, -1, channels)


LOADED = Loaded(MeanColours(), {}, 3, None)


def halves(height, width, *, left, right):
    """A photo of two flat colours."""
    photo = np.empty((height, width, 3), np.uint8)
    photo[:, : width // 2], photo[:, width // 2 :] = left, right
    return photo


def panel(sheet, *, row, column):
    """The pixels of a panel, and by how much it is enlarged."""
    found = sheet.columns[column]
    return np.round(found[row] * 255), found.shape[1] // 96


PHOTOS = [
    halves(64, 96, left=(200, 20, 20), right=(20, 20, 200)),
    halves(96, 64, left=(20, 200, 20), right=(200, 200, 20)),
]


def test_rows_show_the_photos_in_the_middle(unlaid):
    """Of two photos of unlike shape, on canvases of 96x96."""
    sheet = teacher_sheet(LOADED, PHOTOS, heading='teacher x')
    first, _ = panel(sheet, row=0, column=0)
    np.testing.assert_array_equal(first[16:-16], PHOTOS[0])
    assert (first[:16] == 255).all()
    second, _ = panel(sheet, row=1, column=0)
    np.testing.assert_array_equal(second[:, 16:-16], PHOTOS[1])
    assert len(sheet.columns) == 8  # photo, tokens, five schedules, target
    assert sheet.heading == 'teacher x'
    texts = ' '.join(key.text for key in sheet.legend)
    assert 'never joins' in texts and 'principal components' in texts


def test_tokens_and_target_of_all_photos_share_their_colours(unlaid, monkeypatch):
    photos = [np.zeros((96, 96, 3), np.uint8)] * 2
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 1, 144, 6))
    groups = np.zeros((5, 1, 144), np.int32)
    order = rng.permutation(144)
    # As if the second photo's target were the first one's tokens in another order.
    seen = iter([(tokens[0], groups, tokens[0]), (tokens[1], groups, tokens[0][:, order])])
    monkeypatch.setattr(pictures_of_teacher, '_see', lambda *_, **__: next(seen))
    sheet = teacher_sheet(LOADED, photos)
    first, _ = panel(sheet, row=0, column=1)
    target, _ = panel(sheet, row=1, column=7)
    first, target = (x[::8, ::8].reshape(144, 3) for x in (first, target))
    np.testing.assert_array_equal(target, first[order])
    assert len(np.unique(first, axis=0)) > 80


def test_the_target_is_the_mean_over_the_groups_shown():
    images = np.random.default_rng(0).integers(256, size=(1, 64, 96, 3), dtype=np.uint8)
    tokens, groups, target = pictures_of_teacher._see({}, images, teacher=MeanColours())
    tokens, target, groups = np.asarray(tokens[0]), np.asarray(target[0]), np.asarray(groups)
    counts = [len(np.unique(schedule)) for schedule in groups]
    assert len(counts) == 5 and counts == sorted(counts, reverse=True) and counts[0] < 96
    for group in np.unique(groups[3]):
        members = groups[3, 0] == group
        expected = np.broadcast_to(tokens[members].mean(axis=0), (members.sum(), 3))
        np.testing.assert_allclose(target[members], expected, atol=1e-5)


def test_more_patches_are_in_groups_from_left_to_right(unlaid):
    sheet, joined = teacher_sheet(LOADED, PHOTOS), []
    for column in range(2, 7):
        painted, scale = panel(sheet, row=0, column=column)
        centres = painted[(16 + 4) * scale : -16 * scale : 8 * scale, 4 * scale :: 8 * scale]
        assert centres.shape == (8, 12, 3)
        joined.append((centres != PHOTOS[0][4::8, 4::8]).any(axis=-1).sum())
    assert joined == sorted(joined) and 20 <= joined[0] < joined[-1]


@pytest.mark.parametrize(
    'size, of, expected',
    [
        ((96,), (427, 640), (96, 144)),
        ((96,), (640, 427), (144, 96)),
        ((100,), (100, 100), (96, 96)),  # 12.5 patches
        ((8,), (10, 1000), (8, 800)),
        ((3,), (50, 50), (8, 8)),
        ((30, 61), (50, 50), (32, 64)),
    ],
)
def test_whole_patches(size, of, expected):
    assert whole_patches(size, of=of, patch_size=(8, 8)) == expected


def test_photos_are_cropped_not_stretched(tmp_path):
    photo = np.zeros((40, 80, 3), np.uint8)
    photo[:, 20:60] = 255  # the centred square
    cv2.imwrite(str(tmp_path / 'a.png'), photo)
    found = read_photo(tmp_path / 'a.png', size=(16, 16), patch_size=(8, 8), channels=3)
    assert found.shape == (16, 16, 3) and (found == 255).all()
    grey = read_photo(tmp_path / 'a.png', size=(16,), patch_size=(8, 8), channels=1)
    assert grey.shape == (16, 32, 1)


def test_command(teacher_file, tmp_path, capsys):
    rng = np.random.default_rng(0)
    for name, size in (('a.jpg', (40, 60)), ('b.png', (50, 30))):
        cv2.imwrite(str(tmp_path / name), rng.integers(256, size=(*size, 3), dtype=np.uint8))
    teacher = [f'--teacher={teacher_file}', '--mean=0.5', '--std=0.25']
    images = ['--images', str(tmp_path / 'a.jpg'), str(tmp_path / 'b.png')]
    (path,) = command.main([*teacher, *images, '--image_size=32', f'--out={tmp_path / "out"}'])
    assert capsys.readouterr().out.strip() == str(path)
    assert path == tmp_path / 'out' / 'teacher.png'
    scale = 224 // 48 + 1  # canvas of 56 x 48: 32x48 and 56x32
    assert cv2.imread(str(path)).shape[0] > 2 * 56 * scale
    with pytest.raises(UserError, match='--image_size'):
        command.main([*teacher, *images])
    (tmp_path / 'c.jpg').write_bytes(b'no photo')
    for name in ('c.jpg', 'nothing.jpg'):
        flags = ['--images', str(tmp_path / name), '--image_size=32']
        with pytest.raises(UserError, match=name):
            command.main([*teacher, *flags])


def test_either_a_run_or_a_teacher(capsys):
    for flags in ([], ['--workdir=x', '--teacher=y'], ['--teacher=y']):
        with pytest.raises(SystemExit):
            command.main(flags)
        assert '--teacher' in capsys.readouterr().err
