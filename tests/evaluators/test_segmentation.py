"""Segmentation judged: against scikit-learn and loops, on any mesh, batch, number of processes."""

import dataclasses
from typing import Any

import cv2
import jax
import numpy as np
import pytest
from sklearn import metrics

from mim_jax import config as configs
from mim_jax import data, experiment
from mim_jax.data import DataConfig
from mim_jax.data.folder import Folder
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.evaluators import Judged, Segmentation, sliding
from mim_jax.evaluators.pixels import count_pairs, figures
from mim_jax.evaluators.sliding import Sliding
from mim_jax.models.segmenters import SEGMENTERS
from mim_jax.program import Program
from tests.evaluators.processes import run_two

RNG = np.random.default_rng(0)


def test_figures_are_those_of_scikit_learn():
    true = RNG.choice([0, 1, 1, 3, 5], size=(4, 6, 7))
    said = np.where(RNG.random(true.shape) < 0.6, true, RNG.choice([0, 1, 2, 5], size=true.shape))
    true[1, 2:4] = 255
    known = true.ravel() != 255
    pair = true.ravel()[known], said.ravel()[known]
    confusion = np.asarray(count_pairs(true, said, classes=7))
    np.testing.assert_array_equal(confusion, metrics.confusion_matrix(*pair, labels=range(7)))
    # Class 2 is said but never true, 3 is true but never said; 4 and 6 are neither: left out.
    present = [0, 1, 2, 3, 5]
    found = figures(confusion)
    iou = metrics.jaccard_score(*pair, labels=present, average=None)
    assert found['miou'] == pytest.approx(iou.mean()) and iou[2] == 0 and (iou > 0).sum() >= 3
    assert found['macc'] == pytest.approx(metrics.balanced_accuracy_score(*pair))
    assert found['aacc'] == pytest.approx(metrics.accuracy_score(*pair))


@pytest.fixture
def make(tiny_config):
    """Function devices, batch size, … -> (program of a segmenter, evaluation)."""

    def make(*, devices=1, batch_size=16, head='linear', **fields):
        config = tiny_config('segmentation')
        config.objective.map = 'mask'
        config.objective.head = configs.option(SEGMENTERS, head)
        config.mesh.data = devices
        config.eval.update(evaluators=('segmentation',), batch_size=batch_size)
        config.eval.segmentation.update(fields)
        run = experiment.from_config(config)
        source = data.make_source(run.data, split='train')
        program = Program.make(run, epoch_examples=64, fields=source.fields)
        return program, Evaluation(program, source)

    return make


@pytest.mark.parametrize(
    ('devices', 'batch_size', 'count'), [(1, 16, 32), (8, 24, 32), (4, 12, 29)]
)
def test_whole_images_on_any_mesh_and_batch(make, devices, batch_size, count):
    program, evaluation = make(devices=devices, batch_size=batch_size, max_test=count)
    variables = program.init({}).variables
    source = data.make_source(program.run.data, split='test')
    items = [source[i * 32 // count] for i in range(count)]
    images = np.stack([item['image'] for item in items]).astype(np.float32) / 255
    true = np.stack([item['mask'] for item in items]).astype(int)
    logits = program.objective.pixel_logits(jax.device_get(variables), images)
    said = np.asarray(logits).argmax(axis=-1)
    assert 0 < said.mean() < 1
    expected = metrics.confusion_matrix(true.ravel(), said.ravel(), labels=range(2))
    found = evaluation.run(variables)
    np.testing.assert_array_equal(evaluation.confusions['segmentation'], expected)
    iou = metrics.jaccard_score(true.ravel(), said.ravel(), average=None)
    assert found['eval/segmentation/miou'] == pytest.approx(iou.mean())
    assert evaluation.run(variables) == found
    assert [step._cache_size() for step in evaluation._compiled_by_judges.values()] == [1]


def test_sliding_over_images_of_the_windows_size_is_whole(make):
    program, evaluation = make(max_test=13, batch_size=8)
    _, sliding_evaluation = make(max_test=13, batch_size=8, mode='slide')
    variables = program.init({}).variables
    assert sliding_evaluation.run(variables) == evaluation.run(variables)
    seen = [one.confusions['segmentation'] for one in (evaluation, sliding_evaluation)]
    np.testing.assert_array_equal(*seen)
    assert seen[0].sum() == 13 * 32 * 32


@dataclasses.dataclass(frozen=True)
class Windows:
    """An objective whose logits depend on the pixel and its place in the window."""

    num_classes: int = 3
    map: str = 'map'

    def pixel_logits(self, variables: Any, images: Any) -> Any:
        rows = variables['place'][: images.shape[1], None, None]
        columns = variables['place'][None, : images.shape[2], None]
        return 9 * images + rows * variables['down'] + columns * variables['across']


VARIABLES = {
    'place': np.linspace(-1, 1, 16).astype(np.float32) ** 2,
    'down': np.array([0.5, -0.7, 0.3], np.float32),
    'across': np.array([-0.4, 0.6, 0.9], np.float32),
}
# Of images and of their labels: as large, twice as large, and of an image below the window's size.
SIZES = [
    ((16, 23), (16, 23)),
    ((30, 16), (60, 32)),
    ((16, 16), (16, 16)),
    ((40, 27), (40, 27)),
    ((9, 12), (9, 12)),
]


def write(root):
    """Five images with maps of classes 0 to 2 and 255."""
    generator = np.random.default_rng(3)
    for i, (size, of_labels) in enumerate(SIZES):
        coarse = generator.integers(0, 256, (4, 5, 3), np.uint8)
        image = cv2.resize(coarse, size[::-1], interpolation=cv2.INTER_CUBIC)
        labels = generator.choice(np.array([0, 1, 2, 255], np.uint8), of_labels)
        for kind, array in (('images', image), ('maps', labels)):
            path = root / kind / 'test' / f'{i}.png'
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), array)


def judged(root, mesh, *, batch_size):
    """The five images before a judge."""
    source = Folder(path=f'{root}/images', map_path=f'{root}/maps', map_classes=3)
    config = DataConfig(source=source, image_size=(16, 16))
    config = dataclasses.replace(
        config, crop=dataclasses.replace(config.crop, interpolation='linear')
    )
    views = {'images': config.view(maps=('map',))}
    return Judged(
        objective=Windows(),
        variables=VARIABLES,
        mesh=mesh,
        data=config,
        views=data.eval_views(config, views),
        source=data.make_source(config, split='test'),
        batch_size=batch_size,
        num_classes=None,
        compiled={},
    )


def mesh(count):
    auto = (jax.sharding.AxisType.Auto,) * 2
    return jax.make_mesh(
        (count, 1), ('data', 'fsdp'), axis_types=auto, devices=jax.devices()[:count]
    )


def resized(array, size):
    """float [h,w,C] between the four nearest pixels, in a loop."""
    out = np.zeros((*size, array.shape[-1]))
    for y in range(size[0]):
        for x in range(size[1]):
            places = []
            for i, n, m in ((y, array.shape[0], size[0]), (x, array.shape[1], size[1])):
                place = max((i + 0.5) * n / m - 0.5, 0)
                low = int(place)
                places.append((low, min(low + 1, n - 1), place - low))
            (top, bottom, v), (left, right, u) = places
            upper = (1 - u) * array[top, left] + u * array[top, right]
            lower = (1 - u) * array[bottom, left] + u * array[bottom, right]
            out[y, x] = (1 - v) * upper + v * lower
    return out


def by_loop(image, size, *, scales, flip):
    """Probabilities [H,W,classes] at `size` of an image uint8, as mmseg's slide inference."""
    total = 0
    for scale in scales:
        short = max(int(16 * scale), 16)
        factor = short / min(image.shape[:2])
        seen = tuple(int(side * factor + 0.5) for side in image.shape[:2])
        pixels = np.floor(resized(image.astype(float), seen) + 0.5)
        for mirrored in (False, True) if flip else (False,):
            shown = pixels[:, ::-1] if mirrored else pixels
            logits, count = np.zeros((*seen, 3)), np.zeros((*seen, 1))
            top = 0
            while True:
                y, left = min(top, seen[0] - 16), 0
                while True:
                    x = min(left, seen[1] - 16)
                    window = shown[y : y + 16, x : x + 16].astype(np.float32) / 255
                    said = Windows().pixel_logits(VARIABLES, window[None])[0]
                    logits[y : y + 16, x : x + 16] += said
                    count[y : y + 16, x : x + 16] += 1
                    if x == seen[1] - 16:
                        break
                    left += 11
                if y == seen[0] - 16:
                    break
                top += 11
            logits = resized(logits / count, size)
            logits = logits[:, ::-1] if mirrored else logits
            exponents = np.exp(logits)
            total = total + exponents / exponents.sum(axis=-1, keepdims=True)
    return total


OPTIONS = [{}, {'flip': True, 'scales': (0.5, 1.0, 1.75)}]


def expected(root, options):
    confusion = 0
    for i, (_, of_labels) in enumerate(SIZES):
        image = cv2.imread(str(root / 'images' / 'test' / f'{i}.png'))[..., ::-1]
        labels = cv2.imread(str(root / 'maps' / 'test' / f'{i}.png'), cv2.IMREAD_UNCHANGED)
        options = {'scales': (1.0,), 'flip': False} | options
        said = by_loop(image, of_labels, **options).argmax(axis=-1)
        known = labels != 255
        pair = labels[known], said[known]
        confusion = confusion + metrics.confusion_matrix(*pair, labels=range(3))
    return confusion


@pytest.mark.parametrize('options', OPTIONS)
def test_sliding_windows_equal_a_loop_on_any_mesh(tmp_path, monkeypatch, options):
    monkeypatch.setattr(sliding, 'BUCKET', 24)
    write(tmp_path)
    wanted = expected(tmp_path, options)
    assert (wanted.sum(axis=0) > 200).all()  # every class is said
    assert wanted.sum() == sum(
        (cv2.imread(str(p), cv2.IMREAD_UNCHANGED) != 255).sum() for p in tmp_path.glob('maps/*/*')
    )
    for devices, batch_size in ((1, 4), (8, 8)):
        judge = Segmentation(mode='slide', **options)
        found = dict(judge.judge(judged(tmp_path, mesh(devices), batch_size=batch_size)))
        # A pixel between two classes may fall to either by rounding.
        assert np.abs(found['confusion'] - wanted).sum() <= 4
        assert found['miou'] == pytest.approx(figures(wanted)['miou'], abs=1e-3)


TWO_PROCESSES = """
from pathlib import Path
from mim_jax.evaluators import Segmentation
from tests.evaluators import test_segmentation as test
judge = Segmentation(mode='slide')
given = test.judged(Path(ROOT), test.mesh(4), batch_size=4)
given = test.dataclasses.replace(given, variables=given.replicate(dict(given.variables)))
result = dict(judge.judge(given))['confusion'].tolist()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    write(tmp_path)
    one = dict(Segmentation(mode='slide').judge(judged(tmp_path, mesh(1), batch_size=4)))
    for result in run_two(TWO_PROCESSES.replace('ROOT', repr(str(tmp_path)))):
        np.testing.assert_array_equal(result, one['confusion'])


def test_sizes_and_starts_are_mmsegs():
    plain = Sliding((512, 512), (341, 341))
    assert plain.size(1.0, height=683, width=512) == (683, 512)
    assert plain.size(1.0, height=1024, width=2048) == (512, 1024)
    assert plain.size(0.5, height=600, width=800) == (512, 683)  # not below the window
    assert plain.size(1.0, height=100, width=900) == (512, 4608)  # nor where it is very long
    assert plain.starts((683, 512)) == ([0, 171], [0])
    assert plain.starts((512, 1200)) == ([0], [0, 341, 682, 688])


def test_a_corrupt_image_is_left_out_and_wrong_maps_are_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(sliding, 'BUCKET', 24)
    write(tmp_path)

    def run():
        return dict(Segmentation(mode='slide').judge(judged(tmp_path, mesh(1), batch_size=4)))

    whole = run()['confusion'].sum()
    of_labels = cv2.imread(str(tmp_path / 'maps/test/1.png'), cv2.IMREAD_UNCHANGED)
    (tmp_path / 'images/test/1.png').write_bytes(b'no image')
    assert run()['confusion'].sum() == whole - (of_labels != 255).sum()
    assert cv2.imwrite(str(tmp_path / 'maps/test/0.png'), np.full((16, 23), 3, np.uint8))
    with pytest.raises(UserError, match=r'test/0.png holds the number 3, but classes are 0 to 2'):
        run()


def test_wrong_fields_and_other_objectives_are_told(make, tiny_config):
    with pytest.raises(ValueError, match='scales'):
        Segmentation(scales=())
    config = tiny_config('simmim')
    config.eval.evaluators = ('segmentation',)
    run = experiment.from_config(config)
    source = data.make_source(run.data, split='train')
    with pytest.raises(UserError, match='judges what an objective predicts'):
        Evaluation(Program.make(run, epoch_examples=64, fields=source.fields), source)
