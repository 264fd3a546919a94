import pickle

import pytest

from mim_jax.data import image_fields
from mim_jax.evaluators import EvenlySpaced


class Sorted:
    fields = image_fields(10)

    def __len__(self):
        return 1000

    def __getitem__(self, index):
        return {'image': index, 'label': index // 100}

    def describe(self, index):
        return f'item {index}'


@pytest.mark.parametrize('limit', [10, 37, 999])
def test_every_class_of_a_sorted_source_is_there(limit):
    subset = pickle.loads(pickle.dumps(EvenlySpaced(Sorted(), limit)))
    items = [subset[i] for i in range(len(subset))]
    assert len(items) == limit
    assert len({item['image'] for item in items}) == limit
    counts = [sum(item['label'] == c for item in items) for c in range(10)]
    assert max(counts) - min(counts) <= 1 and subset.fields == image_fields(10)
    assert subset.describe(limit - 1) == f'item {items[-1]["image"]}'


@pytest.mark.parametrize('limit', [None, 1000, 5000])
def test_no_limit_is_the_source(limit):
    subset = EvenlySpaced(Sorted(), limit)
    assert [subset[i]['image'] for i in range(len(subset))] == list(range(1000))
    with pytest.raises(IndexError):
        subset[1000]
