"""The page of the zoo: its table, what it says of methods, its pictures."""

import numpy as np
import pytest
from PIL import Image

from mim_jax import experiment
from mim_jax.objectives import OBJECTIVES
from mim_jax.visualize.draw import write_png
from mim_jax.zoo import page
from mim_jax.zoo.figures import Figures


def make_row(name, objective, workdir=None, *, knn=(0.1, 0.5), learns_from=(), peak=3 << 20):
    config = experiment.from_config(experiment.default_config(objective))
    figures = Figures((1.5, 0.25), knn, (0.1, 0.1), (7.0, 8.5), 123.4)
    images = {'knn': 2048, 'linear': 2048}
    return page.Row(name, workdir, config, 20, figures, images, 4096, learns_from, peak)


def cells(line):
    return [cell.strip() for cell in line.strip('|').split('|')]


def test_a_row_says_before_and_after_and_what_became_of_the_features():
    rows = [
        make_row('mine', 'mae'),
        make_row('other', 'classification', knn=(0.1, 0.11), learns_from=('mine',), peak=None),
    ]
    header, _, first, second, failed = map(cells, page.table(rows, failed={'x': 'y'}).splitlines())
    assert len(header) == len(first) == len(second) == len(failed)
    assert first == [
        '[`mine`](#mine)',
        '1.500 → 0.250',
        '10.0 → 50.0',
        '10.0 → 10.0',
        '7.0 → 8.5',
        '123',
        '3',
        'better',
    ]
    assert second[0] == '[`other`](#other) (labels, after `mine`)'
    assert second[-2:] == ['unknown', '**not moved**']
    assert failed[:2] == ['`x`', '**failed**']


def test_methods_that_did_not_move_failed_or_were_not_run_are_named():
    rows = [make_row('a', 'mae', knn=(0.1, 0.11)), make_row('b', 'mae')]
    still, why, left = page.verdicts(rows, failed={'c': 'no\nmemory'}, absent=['d']).split('\n\n')
    assert '`a`' in still and '`b`' not in still
    assert why == 'Failed: `c`: no memory' and left == 'Not run: `d`.'
    rows = [make_row('b', 'mae'), make_row('e', 'mae', knn=(0.5, 0.1))]
    still, worse = page.verdicts(rows, failed={}, absent=[]).split('\n\n')
    assert 'none' in still and 'worse' in worse and '`e`' in worse and '`b`' not in worse


@pytest.mark.parametrize('name', OBJECTIVES)
def test_every_method_says_what_it_is_in_a_paragraph_or_two(name):
    title, *rest = page.words(OBJECTIVES[name]).split('\n\n')
    assert title.startswith('**') and title.endswith('.**') and len(rest) <= 1
    assert all(part.endswith('.') for part in rest) and '\n' not in ''.join([title, *rest])


def test_the_methods_own_pictures_are_shown_as_one(tmp_path):
    rng = np.random.default_rng(0)
    parts = {n: rng.integers(0, 256, (h, 8, 3), np.uint8) for n, h in (('mask', 3), ('groups', 5))}
    for name in (*parts, 'features'):
        write_png(tmp_path / 'pictures' / f'{name}_000020.png', parts.get(name, parts['mask']))
    write_png(tmp_path / 'pictures' / 'mask_000000.png', parts['mask'])
    assert [path.stem for path in page.sheets(tmp_path, step=20)] == [
        'groups_000020',
        'mask_000020',
    ]
    (tmp_path / 'images').mkdir()
    row = make_row('mine', 'mae', tmp_path)
    text = page.section(row, out=tmp_path / 'zoo.md', pictures=tmp_path / 'images')
    assert text.startswith('### mine\n\n**Masked Autoencoders') and '](images/mine.png)' in text
    whole = np.asarray(Image.open(tmp_path / 'images' / 'mine.png').convert('RGB'))
    np.testing.assert_array_equal(whole, np.concatenate([parts['groups'], parts['mask']]))
    for name in parts:
        (tmp_path / 'pictures' / f'{name}_000020.png').unlink()
    assert [path.stem for path in page.sheets(tmp_path, step=20)] == ['features_000020']
    (tmp_path / 'pictures' / 'features_000020.png').unlink()
    text = page.section(row, out=tmp_path / 'zoo.md', pictures=tmp_path / 'images')
    assert text.endswith('The run could draw no picture.\n\n')
