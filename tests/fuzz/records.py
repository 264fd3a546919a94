"""ArrayRecord files of TensorFlow Datasets and the JSON beside them, damaged at random."""

import json
import shutil

import numpy as np

from mim_jax.data import Crop, DataConfig, make_source
from mim_jax.data.elements import EvalElements
from mim_jax.data.tfds import Tfds
from tests.fuzz.images import picture
from tests.fuzz.weights import ODD, damaged


def records(folder):
    """A prepared dataset of which one file is damaged: told, or read as it was, or corrupt."""
    import tensorflow_datasets as tfds

    from tests.data.test_tfds import write

    rng = np.random.default_rng(0)
    items = [{'image': picture(rng)[0], 'label': [i % 3]} for i in range(8)]
    features = {
        'image': tfds.features.Image(shape=(None, None, 3)),
        'label': tfds.features.ClassLabel(names=['a', 'b', 'c']),
    }
    write(folder, 'whole', features, items, supervised=('image', 'label'))
    whole = folder / 'whole' / '1.0.0'
    files = sorted(path.name for path in whole.iterdir())

    def case(rng):
        name = files[rng.integers(len(files))]
        before = (whole / name).read_bytes()
        content, words = damaged(rng, before), 'bytes'
        if name.endswith('.json') and rng.random() < 0.7:
            content, words = _odd(rng, json.loads(before))

        def act():
            root = folder / 'data'
            shutil.copytree(whole, root / 'whole' / '1.0.0')
            try:
                (root / 'whole' / '1.0.0' / name).write_bytes(content)
                section = Tfds(dataset='whole:1.0.0', path=str(root))
                config = DataConfig(source=section, crop=Crop(mode='resize'), image_size=(8, 8))
                section.assumed_fields()
                source = make_source(config, split='train')
                elements = EvalElements(source, config, {'images': config.view()})
                source.fingerprint()
                read = [elements(i) for i in range(len(source))]
                for i, element in enumerate(read):
                    if 'labels' in element and element['valid'] and 'array_record' in name:
                        _same(element, source[i], items[i])
                return 'read' if all(element['valid'] for element in read) else 'corrupt'
            finally:
                shutil.rmtree(root)

        return f'{name}: {words}', act

    return case


def _same(element, item, before):
    if item['image'] != before['image'] or element['labels'] != before['label'][0]:
        raise RuntimeError('another record was read, and nothing was said')


def _odd(rng, value):
    """The JSON with something odd anywhere in it."""
    place, words = value, []
    while True:
        keys = list(place) if isinstance(place, dict) else range(len(place))
        key = keys[rng.integers(len(keys))]
        words.append(str(key))
        inner = place[key]
        if not isinstance(inner, (dict, list)) or not inner or rng.random() < 0.3:
            odd = ODD[rng.integers(len(ODD))]
            place[key] = odd
            return json.dumps(value).encode(), f'{".".join(words)} = {odd!r}'
        place = inner
