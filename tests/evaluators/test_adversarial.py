"""Attacks on a linear classifier, whose gradient is known, against a loop over its images."""

import jax
import numpy as np
import pytest

from mim_jax import data, experiment, keys
from mim_jax.errors import UserError
from mim_jax.evaluation import Evaluation
from mim_jax.evaluators import EVALUATORS
from mim_jax.evaluators.adversarial import Adversarial
from mim_jax.program import Program

RNG = np.random.default_rng(0)
IMAGES = RNG.random((4, 3, 3, 1)).astype(np.float32)
IMAGES[0, 0] = 0.999  # near what an image can be
LABELS = np.array([0, 1, 2, 1])
WEIGHTS = RNG.normal(size=(9, 3)).astype(np.float32)


def logits(images, key):
    return images.reshape(len(images), 9) @ WEIGHTS


def uphill_by_hand(image, label):
    scores = image.reshape(9) @ WEIGHTS
    chances = np.exp(scores) / np.exp(scores).sum()
    return np.sign(WEIGHTS @ (chances - np.eye(3)[label])).reshape(3, 3, 1)


def test_fgsm_is_one_step_to_the_bound():
    attack = Adversarial(attack='fgsm', epsilon=8.0)
    changed = jax.jit(lambda x: attack.changed(logits, x, LABELS, jax.random.key(0)))(IMAGES)
    for image, label, found in zip(IMAGES, LABELS, changed, strict=True):
        expected = np.clip(image + 8 / 255 * uphill_by_hand(image, label), 0, 1)
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_pgd_walks_within_the_bound_from_a_random_start():
    attack = Adversarial(attack='pgd', epsilon=8.0, step_size=3.0, steps=4)
    key = jax.random.key(1)
    changed = jax.jit(lambda x: attack.changed(logits, x, LABELS, key))(IMAGES)
    own = keys.per_example(keys.named(key, 'start'), 4)
    for image, label, k, found in zip(IMAGES, LABELS, own, changed, strict=True):
        start = np.asarray(jax.random.uniform(k, (3, 3, 1), minval=-1.0))
        x = np.clip(image + 8 / 255 * start, 0, 1)
        for _ in range(4):
            x = x + 3 / 255 * uphill_by_hand(x, label)
            x = np.clip(np.clip(x, image - 8 / 255, image + 8 / 255), 0, 1)
        np.testing.assert_allclose(found, x, atol=1e-6)


def test_a_defence_is_tried_with_other_deviations_where_there_is_one():
    class Defended:
        def with_noise(self, deviation):
            return deviation

    attack = Adversarial(deviations=(0.0, 70.0))
    attack.check(Defended())
    with pytest.raises(UserError, match='deviations = .*: this objective is not defended by noise'):
        attack.check(object())
    Adversarial().check(object())


@pytest.mark.slow
@pytest.mark.parametrize('devices, batch_size', [(1, 16), (4, 24)])
def test_every_image_counts_once_on_any_mesh(tiny_config, devices, batch_size):
    config = tiny_config('classification')
    config.mesh.data = devices
    config.eval.update(evaluators=('adversarial',), batch_size=batch_size)
    config.eval.adversarial.update(attack='fgsm', epsilon=4.0, max_test=29)
    config.objective.head_scale = 1.0
    run = experiment.from_config(config)
    source = data.make_source(run.data, split='train')
    program = Program.make(run, epoch_examples=64, fields=source.fields)
    variables = program.init({}).variables
    found = Evaluation(program, source).run(variables)
    test = data.make_source(run.data, split='test')
    items = [test[i * 32 // 29] for i in range(29)]
    images = np.stack([item['image'] for item in items]).astype(np.float32) / 255
    labels = np.array([item['label'] for item in items])
    variables = jax.device_get(variables)

    def says(x, key=None):
        return program.objective.logits(variables, x)

    attack = EVALUATORS['adversarial'](attack='fgsm', epsilon=4.0)
    changed = attack.changed(says, images, labels, jax.random.key(0))
    expected = {
        f'eval/adversarial/{name}': float((np.argmax(says(x), axis=-1) == labels).mean())
        for name, x in (('top1', changed), ('top1_clean', images))
    }
    assert found == pytest.approx(expected)
