"""Which class a folder is, and AlexNet's errors against those by severity."""

import numpy as np
import pytest

from mim_jax.errors import UserError
from mim_jax.evaluators.benchmark_sets import (
    ALEXNET_ERRORS,
    classes_of,
    corrupted_sets,
    numbered_classes_of,
    open_set,
)

NAMES = ('n07', 'n03', 'n05')  # in an order of their own, as a prepared data set may have them
AT = dict(field='config.x', path='DIR')
# Top-1 errors of AlexNet at severities 1 to 5, as published beside the code of later benchmarks.
BY_SEVERITY = {
    'gaussian_noise': (0.69528, 0.82542, 0.93554, 0.98138, 0.99452),
    'shot_noise': (0.71224, 0.85108, 0.93574, 0.98182, 0.99146),
    'impulse_noise': (0.78374, 0.89808, 0.9487, 0.9872, 0.99548),
    'defocus_blur': (0.65624, 0.73202, 0.85036, 0.91364, 0.94714),
    'glass_blur': (0.64308, 0.75054, 0.88806, 0.91622, 0.93344),
    'motion_blur': (0.5843, 0.70048, 0.82108, 0.8975, 0.92638),
    'zoom_blur': (0.70008, 0.76992, 0.80784, 0.84198, 0.87198),
    'snow': (0.71726, 0.88392, 0.86468, 0.9187, 0.94952),
    'frost': (0.6139, 0.79734, 0.8879, 0.89942, 0.9343),
    'fog': (0.67474, 0.7605, 0.84378, 0.8726, 0.945),
    'brightness': (0.4514, 0.48502, 0.54048, 0.62166, 0.7244),
    'contrast': (0.64548, 0.7615, 0.88874, 0.9776, 0.9927),
    'elastic_transform': (0.52596, 0.70116, 0.55686, 0.64076, 0.80554),
    'pixelate': (0.52218, 0.5462, 0.73728, 0.87092, 0.91262),
    'jpeg_compression': (0.51002, 0.54718, 0.57294, 0.65458, 0.74778),
}


def test_alexnets_errors_are_the_means_over_severities():
    assert ALEXNET_ERRORS.keys() == BY_SEVERITY.keys()
    for name, errors in BY_SEVERITY.items():
        np.testing.assert_allclose(ALEXNET_ERRORS[name], sum(errors) / 5, atol=1e-9)


def test_folders_are_classes_by_name_or_by_number_of_the_sorted_names():
    assert classes_of(['n03', 'n07'], NAMES, **AT).tolist() == [1, 0]
    assert numbered_classes_of(['0', '1', '2'], NAMES, **AT).tolist() == [1, 2, 0]
    assert numbered_classes_of(['n05', 'n03'], NAMES, **AT).tolist() == [2, 1]
    eleven = [f'n{i:02}' for i in range(11)]
    found = numbered_classes_of(sorted(map(str, range(11))), eleven, **AT)
    assert found.tolist() == [0, 1, 10, 2, 3, 4, 5, 6, 7, 8, 9]


def test_classes_that_the_training_data_do_not_have():
    said = r'^config.x: DIR has the class folder n08 and 1 more, .* \(theirs: n07, n03, n05, …\)'
    with pytest.raises(UserError, match=said):
        classes_of(['n08', 'n03', 'n09'], NAMES, **AT)
    with pytest.raises(UserError, match='config.x: DIR has 4 numbered .* numbers 0 to 2 of the 3'):
        numbered_classes_of(['0', '1', '2', '3'], NAMES, **AT)
    with pytest.raises(UserError, match='config.x: DIR has 2 numbered class folders'):
        numbered_classes_of(['0', '2'], NAMES, **AT)


def test_folders_that_are_no_set(tmp_path):
    with pytest.raises(UserError, match=f'^config.x: there is no folder {tmp_path}/no'):
        open_set(tmp_path / 'no', field='config.x')
    (tmp_path / 'flat').mkdir()
    with pytest.raises(UserError, match=f'^config.x: no images in {tmp_path}/flat'):
        open_set(tmp_path / 'flat', field='config.x')
    (tmp_path / 'flat' / 'a.png').write_bytes(b'')
    with pytest.raises(UserError, match=f'^config.x: {tmp_path}/flat has images, but no class'):
        open_set(tmp_path / 'flat', field='config.x')


def test_corruptions_lie_below_their_groups_or_not(tmp_path):
    with pytest.raises(UserError, match='config.x: there is no folder'):
        corrupted_sets(tmp_path / 'no', field='config.x')
    for name in ALEXNET_ERRORS:
        for severity in '12345':
            group = 'noise' if name.endswith('noise') else ''
            (tmp_path / group / name / severity).mkdir(parents=True)
    (tmp_path / 'extra' / 'saturate' / '1').mkdir(parents=True)
    found = corrupted_sets(tmp_path, field='config.x')
    assert list(found) == list(ALEXNET_ERRORS)
    assert found['shot_noise'][4] == str(tmp_path / 'noise' / 'shot_noise' / '5')
    assert found['fog'] == [str(tmp_path / 'fog' / severity) for severity in '12345']
    (tmp_path / 'fog' / '3').rmdir()
    with pytest.raises(UserError, match=f'1 of the 75 folders .* first: {tmp_path}/fog/3'):
        corrupted_sets(tmp_path, field='config.x')
