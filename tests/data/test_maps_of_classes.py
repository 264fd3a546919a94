"""Maps of classes: mmseg's crop, numbers that are no classes, ADE20K's folders and records."""

import cv2
import numpy as np
import pytest

from mim_jax.data import (
    Crop,
    DataConfig,
    Field,
    View,
    crops,
    eval_views,
    make_source,
    picture,
    resample,
)
from mim_jax.data.elements import TrainElements
from mim_jax.data.folder import Folder
from mim_jax.errors import UserError

FIELDS = (Field('image', 'image'), Field('map', 'map', num_classes=5))


def photo(height, width, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 7, 3), np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def blocks(height, width, seed=0):
    """A map of large patches of classes 0 to 4, and 255."""
    coarse = np.random.default_rng(seed).choice(np.array([0, 1, 2, 3, 4, 255], np.uint8), (5, 6))
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_NEAREST)


class Spy:
    """A generator that notes the whole numbers it draws."""

    def __init__(self, seed):
        self.generator, self.drawn = np.random.default_rng(seed), []

    def uniform(self, low, high):
        self.factor = self.generator.uniform(low, high)
        return self.factor

    def integers(self, low, high):
        self.drawn.append(int(self.generator.integers(low, high)))
        return self.drawn[-1]


@pytest.mark.parametrize('size', [(60, 80), (130, 31), (33, 300)])
@pytest.mark.parametrize('seed', range(6))
def test_the_scaled_crop_is_mmsegs_resize_crop_and_pad(size, seed):
    """Step by step: resize by OpenCV, crop at what was drawn, count classes, pad."""
    image, labels = photo(*size), blocks(*size, seed=1)
    crop = Crop(mode='scaled', interpolation='linear', max_share=0.4)
    view = View(crop=crop, image_size=(40, 40), maps=('map',))
    rng = Spy(seed)
    item = picture.Item({'image': image, 'map': labels}, channels=3, fields=FIELDS)
    shown = picture.show(item, view, rng, fill=(1, 2, 3))

    long, short = int(160 * rng.factor), int(40 * rng.factor)
    factor = min(long / max(size), short / min(size))
    whole = tuple(int(side * factor + 0.5) for side in size)
    resized = cv2.resize(image, whole[::-1], interpolation=cv2.INTER_LINEAR)
    rows = ((np.arange(whole[0]) + 0.5) * size[0] / whole[0]).astype(int)
    columns = ((np.arange(whole[1]) + 0.5) * size[1] / whole[1]).astype(int)
    resized_labels = labels[rows[:, None], columns]
    pairs = list(zip(rng.drawn[::2], rng.drawn[1::2], strict=True))
    for i, (top, left) in enumerate(pairs):
        cut = resized_labels[top : top + 40, left : left + 40]
        counts = [int((cut == k).sum()) for k in range(5)]
        present = [count for count in counts if count]
        mixed = len(present) > 1 and max(present) / sum(present) < 0.4
        assert mixed == (i == len(pairs) - 1) or len(pairs) == 11
    top, left = pairs[-1]
    expected = np.full((40, 40, 3), (1, 2, 3), np.uint8)
    part = resized[top : top + 40, left : left + 40]
    expected[: part.shape[0], : part.shape[1]] = part
    expected_labels = np.full((40, 40), 255)
    expected_labels[: part.shape[0], : part.shape[1]] = cut
    # OpenCV computes with 11 bits.
    assert np.abs(shown.image.astype(int) - expected).max() <= 1
    np.testing.assert_array_equal(shown.maps['map'], expected_labels)
    assert shown.inside == (slice(0, part.shape[0]), slice(0, part.shape[1]))
    np.testing.assert_allclose(
        shown.box, (top / whole[0], left / whole[1], 40 / whole[0], 40 / whole[1])
    )


def test_some_crops_are_drawn_again_and_some_padded():
    drawn, padded = [], 0
    crop = Crop(mode='scaled', interpolation='linear', max_share=0.4)
    labels = blocks(60, 80, seed=1)

    for seed in range(60):
        rng = Spy(seed)
        window = crops.choose(
            crop,
            rng,
            height=60,
            width=80,
            size=(40, 40),
            labels=lambda w: w.nearest(labels, of=(60, 80)),
        )
        drawn.append(len(rng.drawn) // 2)
        padded += window.canvas is not None
    assert min(drawn) == 1 and max(drawn) > 1 and 10 < padded < 30
    one = np.zeros((60, 80), np.uint8)
    rng = Spy(0)
    crops.choose(
        crop, rng, height=60, width=80, size=(40, 40), labels=lambda w: w.nearest(one, of=(60, 80))
    )
    assert len(rng.drawn) // 2 == 11  # the last one stays, whatever it shows
    free = Crop(mode='scaled', max_share=1.0)
    crops.choose(free, rng := Spy(0), height=60, width=80, size=(40, 40), labels=lambda w: 1 / 0)
    assert len(rng.drawn) == 2


@pytest.mark.parametrize('size', [(97, 131), (20, 30), (64, 64), (11, 200)])
def test_linear_is_opencvs(size):
    image = photo(64, 90)
    found = resample.resize(image, size, interpolation='linear')
    expected = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    assert np.abs(found.astype(int) - expected).max() <= 1


def write(root, kind, name, array):
    path = root / kind / 'training' / name
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), array)


@pytest.fixture
def ade(tmp_path):
    """Two images in ADE20K's layout, whose numbers count from 1; and how they are opened."""
    for i in range(2):
        write(tmp_path, 'images', f'{i}.jpg', photo(30, 40, seed=i))
        write(tmp_path, 'annotations', f'{i}.png', np.full((30, 40), 3 * i, np.uint8))

    def open_source(**section):
        section = {'map_classes': 150, 'reduce_zero_label': True} | section
        folder = Folder(path=f'{tmp_path}/images', map_path=f'{tmp_path}/annotations', **section)
        crop = Crop(mode='scaled', interpolation='linear')
        config = DataConfig(source=folder, split='training', image_size=(16, 16), crop=crop)
        return config, make_source(config, split='training')

    return tmp_path, open_source


def elements(config, source):
    view = config.view(maps=('map',))
    made = TrainElements(source, config, {'images': view})
    return [made(i, np.random.Generator(np.random.Philox(i))) for i in range(2)]


def test_ade20k_counts_from_one(ade):
    config, source = ade[1]()
    assert source.fields[-1] == Field('map', 'map', num_classes=150, reduce_zero_label=True)
    first, second = elements(config, source)
    assert set(np.unique(first['images_map'])) == {255}  # 0 in the file: no class
    assert 2 in np.unique(second['images_map'])  # 3 in the file
    assert set(np.unique(second['images_map'])) <= {2, 255}
    assert second['images_map'].dtype == np.int32


def test_colours_beyond_the_image_are_the_mean(ade):
    config, source = ade[1]()
    shown = [
        picture.show(
            picture.Item(source[0], channels=3),
            View(crop=config.crop, image_size=(64, 64)),
            np.random.default_rng(seed),
            fill=(124, 116, 104),
        )
        for seed in range(8)
    ]
    beyond = [one for one in shown if one.inside[0].stop < 64]
    assert beyond and all((one.image[-1] == (124, 116, 104)).all() for one in beyond)
    made = TrainElements(source, config, {'images': config.view()})
    assert made._mean.tolist() == [124, 116, 104]


def test_evaluation_sees_the_centre_without_distortion(ade):
    config, _ = ade[1]()
    view = config.view(maps=('map',), transforms=(np.copy,))
    seen = eval_views(config, {'images': view})['images']
    assert seen.crop.mode == 'centre' and seen.crop.share == 1.0 and seen.maps == ('map',)
    assert seen.transforms == ()


@pytest.mark.parametrize(
    ('array', 'section', 'said'),
    [
        (np.full((30, 40), 151, np.uint8), {},
         r'1.png holds the number 151, but classes are 1 to 150'),
        (np.full((30, 40), 7, np.uint8), {'map_classes': 7, 'reduce_zero_label': False},
         r'training/1.jpg holds the number 7, but classes are 0 to 6'),
        (np.full((40, 30), 1, np.uint8), {}, r'map of .*1.jpg has 40x30 pixels .* its image 30x40'),
    ],
)  # fmt: skip
def test_wrong_maps_are_one_sentence(ade, array, section, said):
    root, open_source = ade
    write(root, 'annotations', '1.png', array)
    config, source = open_source(**section)
    with pytest.raises(UserError, match=said.replace('1.png', '1.jpg')):
        elements(config, source)


def test_wrong_sections_are_told():
    with pytest.raises(ValueError, match='reduce_zero_label needs map_classes'):
        Folder(path='x', map_path='y', reduce_zero_label=True)
    with pytest.raises(ValueError, match='reduce_zero_label needs the number of classes'):
        Field('map', 'map', reduce_zero_label=True)
