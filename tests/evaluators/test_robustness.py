"""The robustness judge: against a count by hand, on any mesh and batch."""

import cv2
import jax
import numpy as np
import pytest

from mim_jax import data, experiment
from mim_jax.config import option
from mim_jax.data.sources import SOURCES
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.evaluators.benchmark_sets import ALEXNET_ERRORS
from mim_jax.evaluators.robustness import _counting
from mim_jax.program import Program

NAMES = [f'n{i:02}' for i in range(6)]
FEW = ['n01', 'n02', 'n05']
SMALL = 16  # pixels of the model's images


def fill(folder, rng, *, count, size):
    """`count` images of `size` x `size` random pixels in a folder."""
    folder.mkdir(parents=True)
    for i in range(count):
        pixels = rng.integers(0, 256, (size, size, 3), np.uint8)
        cv2.imwrite(str(folder / f'{i}.png'), pixels)


@pytest.fixture(scope='module')
def folders(tmp_path_factory):
    """Training data of six classes, and the five sets; those of `c` have the model's own size."""
    root, rng = tmp_path_factory.mktemp('sets'), np.random.default_rng(0)
    for split in ('train', 'test'):
        for name in NAMES:
            fill(root / 'data' / split / name, rng, count=3, size=2 * SMALL)
    for i in range(6):
        fill(root / 'v2' / str(i), rng, count=3, size=2 * SMALL)
    for name in FEW:
        fill(root / 'a' / name, rng, count=5, size=2 * SMALL)
        fill(root / 'r' / name, rng, count=7, size=2 * SMALL)
    for name in NAMES:
        fill(root / 'sketch' / name, rng, count=2, size=2 * SMALL)
    for place, corruption in enumerate(ALEXNET_ERRORS):
        for severity in range(1, 6):
            inner = root / 'c' / corruption / str(severity)
            fill(inner / NAMES[(place + severity) % 6], rng, count=2, size=SMALL)
            fill(inner / NAMES[(place + severity + 1) % 6], rng, count=1, size=SMALL)
    return root


@pytest.fixture
def make(tiny_config, folders):
    """Function devices, batch size, fields of the section -> (program, its evaluation)."""

    def make(*, devices=1, batch_size=16, change=lambda config: None, **fields):
        config = tiny_config('classification')
        config.mesh.data = devices
        config.data.source = option(SOURCES, 'folder', path=str(folders / 'data'))
        config.data.update(image_size=(SMALL, SMALL), eval_crop=0.5)
        config.data.crop.mode = 'random'
        config.model.update(width=16, depth=1)
        config.objective.head_scale = 1.0
        config.eval.update(evaluators=('robustness',), batch_size=batch_size)
        config.eval.robustness.update(fields)
        change(config)
        run = experiment.from_config(config)
        source = data.make_source(run.data, split='train')
        program = Program.make(run, epoch_examples=18, fields=source.fields)
        return program, Evaluation(program, source)

    return make


def scores_of(program, variables):
    """Function image [H,W,3] in [0, 1] -> its scores, one image at a time."""
    logits, host = jax.jit(program.objective.logits), jax.device_get(variables)
    return lambda image: np.asarray(logits(host, image[None]))[0]


def right_by_hand(score, folder, *, names, only=None):
    """[images] bool, in the order of class and file: whether each is predicted right."""
    right = []
    for inner in sorted(folder.iterdir()):
        for file in sorted(inner.iterdir()):
            pixels = cv2.imread(str(file))[:, :, ::-1]
            edge = (len(pixels) - SMALL) // 2
            pixels = pixels[edge : edge + SMALL, edge : edge + SMALL]
            scores = score(pixels.astype(np.float32) / 255)
            allowed = [NAMES.index(name) for name in only or NAMES]
            best = max(allowed, key=lambda number: scores[number])
            right.append(best == NAMES.index(names(inner.name)))
    return np.array(right)


@pytest.mark.parametrize(('devices', 'batch_size'), [(1, 16), (4, 12)])
def test_figures_are_those_of_a_count_by_hand(make, folders, devices, batch_size):
    sets = {name: str(folders / name) for name in ('v2', 'a', 'r', 'sketch')}
    program, evaluation = make(devices=devices, batch_size=batch_size, **sets)
    variables = program.init({}).variables
    score = scores_of(program, variables)
    numbered, own = lambda name: NAMES[int(name)], lambda name: name
    expected = {
        'v2': right_by_hand(score, folders / 'v2', names=numbered),
        'a': right_by_hand(score, folders / 'a', names=own, only=FEW),
        'r': right_by_hand(score, folders / 'r', names=own, only=FEW),
        'sketch': right_by_hand(score, folders / 'sketch', names=own),
    }
    unrestricted = right_by_hand(score, folders / 'r', names=own)
    assert unrestricted.mean() != expected['r'].mean()  # so that the restriction shows
    found = evaluation.run(variables)
    assert found == pytest.approx(
        {f'eval/robustness/top1_{name}': right.mean() for name, right in expected.items()}
    )
    # Sets and evaluations share one compiled function.
    assert evaluation.run(variables) == found
    assert [step._cache_size() for step in evaluation._compiled_by_judges.values()] == [1]


def test_corruption_errors_by_hand(make, folders):
    program, evaluation = make(c=str(folders / 'c'))
    variables = program.init({}).variables
    score, expected, scaled = scores_of(program, variables), {}, []
    for corruption, alexnet in ALEXNET_ERRORS.items():
        errors = []
        for severity in '12345':
            folder = folders / 'c' / corruption / severity
            right = right_by_hand(score, folder, names=lambda name: name)
            assert len(right) == 3
            errors.append(1 - sum(right) / 3)
        expected[f'error_c_{corruption}'] = sum(errors) / 5
        scaled.append(sum(errors) / 5 / alexnet)
    error = sum(expected.values()) / 15
    expected |= {'top1_c': 1 - error, 'error_c': error, 'mce': sum(scaled) / 15}
    found = {name.split('/')[-1]: value for name, value in evaluation.run(variables).items()}
    assert found == pytest.approx(expected)
    assert 0 < found['error_c'] < 1


def test_ties_what_is_not_finite_and_classes_that_are_not_allowed():
    logits = np.array([[3, 3, 1], [3, 3, 1], [1, 2, 9], [np.inf, 0, 0], [0, np.nan, 1]], np.float32)

    class Says:
        def logits(self, variables, images):
            return variables

    sums = {'right': np.int32(10), 'count': np.int32(20)}
    rest = dict(images=np.zeros((5, 1), np.uint8), valid=np.array([True] * 4 + [False]))
    allowed = np.array([True, True, False])
    for labels, right in (([0, 1, 1, 0, 2], 2), ([1, 0, 2, 0, 0], 1)):
        found = _counting(Says())(sums, logits, allowed, labels=np.array(labels), **rest)
        assert (found['right'], found['count']) == (10 + right, 24)


def test_a_part_of_each_set_is_evenly_spaced(make, folders):
    program, evaluation = make(r=str(folders / 'r'), max_test=4)
    variables = program.init({}).variables
    score = scores_of(program, variables)
    right = right_by_hand(score, folders / 'r', names=lambda name: name, only=FEW)
    chosen = right[[i * 21 // 4 for i in range(4)]]
    assert evaluation.run(variables) == {'eval/robustness/top1_r': pytest.approx(chosen.mean())}


def test_it_needs_no_evaluation_split(make, folders):
    def change(config):
        config.data.eval_split = None

    program, evaluation = make(r=str(folders / 'r'), change=change)
    assert evaluation.missing is None
    assert set(evaluation.run(program.init({}).variables)) == {'eval/robustness/top1_r'}


def test_mistakes_are_told_before_the_run(make, folders):
    with pytest.raises(UserError, match='config.eval.robustness names no set: give the folder of'):
        make()
    with pytest.raises(UserError, match='^config.eval.robustness.r: there is no folder'):
        make(r=str(folders / 'nowhere'))
    with pytest.raises(UserError, match='config.eval.robustness.sketch: .* has the class folder 0'):
        make(sketch=str(folders / 'v2'))
    with pytest.raises(UserError, match='config.eval.robustness.c: 75 of the 75 folders'):
        make(c=str(folders / 'a'))

    def embedded(config):
        config.data.source = option(SOURCES, 'embedded')
        config.data.image_size = (32, 32)

    with pytest.raises(UserError, match='does not name its own: train from class folders'):
        make(r=str(folders / 'r'), change=embedded)


def test_an_unknown_class_of_a_corruption_is_told_before_the_run(make, folders, tmp_path):
    for corruption in ALEXNET_ERRORS:
        for severity in '12345':
            (tmp_path / corruption / severity / 'n01').mkdir(parents=True)
    (tmp_path / 'snow' / '4' / 'n99').mkdir()
    with pytest.raises(UserError, match='robustness.c: .*snow/4 has the class folder n99, but'):
        make(c=str(tmp_path))
