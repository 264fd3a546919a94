"""V-JEPA's masks against plain loops over images and blocks."""

import dataclasses

import jax
import numpy as np
import pytest

from mim_jax import keys as named_keys
from mim_jax.errors import UserError
from mim_jax.masking import BlockUnion, ShortLongMasking
from tests.masking import reference

RULE = ShortLongMasking(
    short=BlockUnion(num_blocks=8, scale=0.15, num_context=13, num_predicted=31),
    long=BlockUnion(num_blocks=2, scale=0.7, num_context=5, num_predicted=44),
)
KEYS = jax.random.split(jax.random.key(0), 60)
STEP = 3


@pytest.mark.parametrize('kept', ['random', 'first'])
def test_masks_are_those_of_the_loop(kept):
    rule, grid = dataclasses.replace(RULE, kept=kept), (8, 8)
    found = rule(KEYS, grid=grid, step=STEP)
    short_of = {'context': 0, 'predicted': 0}
    for name, union in (('short', rule.short), ('long', rule.long)):
        own = named_keys.named(KEYS, name)
        expected = reference.union_of_blocks(own, STEP, name, union, rule, grid)
        assert found[name].targets.shape == (60, 1, union.num_predicted)
        for image, (visible, predicted, outside) in enumerate(expected):
            np.testing.assert_array_equal(found[name].visible[image], visible)
            np.testing.assert_array_equal(found[name].targets[image, 0], predicted)
            assert not set(visible) & set(predicted)
            short_of['context'] += len(outside) < union.num_context
            short_of['predicted'] += 64 - len(outside) < union.num_predicted
    assert min(short_of.values()) > 0  # both kinds of lack were met


def test_the_papers_counts_fit_imagenets_grid():
    """A block of the short union has about 29 patches, one of the long 137."""
    masking = ShortLongMasking()
    assert masking.count((14, 14)) == 196 - 46
    for union, area in ((masking.short, 29), (masking.long, 137)):
        sizes = masking.sizes(union, (14, 14))
        assert sizes.max() <= 14 and (np.abs(sizes.prod(axis=1) - area) <= 8).all()


@pytest.mark.parametrize(
    'fields, named',
    [
        ({'short': BlockUnion(8, 0.15, 40, 31)}, 'masking.short: num_context .* = 71, .* 64'),
        ({'long': BlockUnion(2, 0.01, 5, 44)}, 'masking.long.scale = 0.01'),
    ],
)
def test_what_the_grid_cannot_hold_is_the_users_mistake(fields, named):
    with pytest.raises(UserError, match=named):
        dataclasses.replace(RULE, **fields).count((8, 8))
