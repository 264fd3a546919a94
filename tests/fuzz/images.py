"""Image files of every sort, whole and damaged, against Pillow; folders of anything."""

import io
import os
import shutil

import numpy as np
from PIL import Image

from mim_jax.data import Crop, DataConfig, decode, make_source
from mim_jax.data.elements import EvalElements
from mim_jax.data.folder import Folder
from tests.fuzz.weights import damaged

# What Pillow writes, by the modes that each format has.
FORMATS = {
    'JPEG': ('RGB', 'L', 'CMYK'),
    'PNG': ('RGB', 'RGBA', 'L', 'LA', 'P', '1', 'I;16'),
    'GIF': ('P', 'L'),
    'WEBP': ('RGB', 'RGBA'),
    'BMP': ('RGB', 'L', '1', 'P'),
    'TIFF': ('RGB', 'RGBA', 'L', '1', 'CMYK', 'I;16', 'F'),
    'PPM': ('RGB', 'L', '1'),
}
CHECKED = ('PNG',)  # formats whose own checksums tell damage
NAMES = (
    'a',
    'ä',
    'ü ö',
    '日本語',
    '-',
    'a b',
    "a'b",
    'x' * 200,
    '\udcff\udcfe',
    '%s{}',
    'a\nb',
    '🙂',
)


def picture(rng):
    """(Pillow's image, format, options) of a random file."""
    kind = str(rng.choice(list(FORMATS)))
    mode = str(rng.choice(FORMATS[kind]))
    height, width = (int(side) for side in rng.choice([1, 2, 3, 7, 16, 33, 97], 2))
    y, x = np.mgrid[:height, :width]
    layers = np.stack([x * 255 / width, y * 255 / height, 127 + 100 * np.sin(x / 9)], -1)
    if rng.random() < 0.5:
        layers = rng.integers(0, 256, (height, width, 3))
    image = Image.fromarray(layers.astype(np.uint8))
    if mode in ('I;16', 'F'):
        grey = np.asarray(image.convert('L'), np.float32) * (257 if mode == 'I;16' else 1)
        image = Image.fromarray(grey.astype(np.uint16) if mode == 'I;16' else grey)
    else:
        image = image.convert(mode)
    options = {}
    if kind in ('GIF', 'WEBP', 'PNG', 'TIFF') and rng.random() < 0.2 and mode not in ('I;16', 'F'):
        options = {'save_all': True, 'append_images': [image.rotate(90), image.rotate(180)]}
    if kind == 'JPEG':
        options = {'quality': int(rng.integers(1, 100)), 'progressive': bool(rng.integers(2))}
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue(), f'{kind} {mode} {width}x{height} {sorted(options)}', kind


def reference(data):
    """Pillow's image, uint8 [H,W,3], or None where it does not read it."""
    try:
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            if image.mode == 'I;16':  # Pillow cuts off what is above 255; the high byte is meant
                image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
            return np.asarray(image.convert('RGB'))
    except Exception:  # whatever Pillow and its plugins raise
        return None


def images(folder):
    """Files as an item of a folder: read as Pillow reads them, or counted as corrupt."""

    def case(rng):
        data, words, kind = picture(rng)
        whole, data = data, damaged(rng, data) if rng.random() < 0.6 else data
        name = NAMES[rng.integers(len(NAMES))]
        ending = str(rng.choice(['.jpg', '.png', '.JPEG', '.webp']))
        mode = str(rng.choice(['resize', 'centre', 'random']))

        def act():
            root = folder / 'images'
            root.mkdir()
            try:
                with open(os.fsencode(root / f'{name}{ending}'), 'wb') as file:
                    file.write(data)
                config = DataConfig(
                    source=Folder(path=str(root)), crop=Crop(mode=mode), image_size=(8, 8)
                )
                source = make_source(config, split='train')
                element = EvalElements(source, config, {'images': config.view()})(0)
                if not element['valid']:
                    if data == whole and ' F ' not in words:  # numbers without a stated range
                        raise RuntimeError(f'a whole file is corrupt: {element["corrupt"]}')
                    return 'corrupt'
                return _compared(data, whole, kind)
            finally:
                shutil.rmtree(os.fsencode(root))

        return f'{words}, {"whole" if data == whole else "damaged"}, {name!r}{ending} {mode}', act

    return case


def _compared(data, whole, kind):
    """How what is read compares with Pillow's; raises where a wrong image would pass."""
    ours, theirs = decode.decode(data, channels=3), reference(data)
    same = theirs is not None and ours.shape == theirs.shape
    same = same and np.abs(ours.astype(int) - theirs).max() <= 2
    if data == whole and not same:
        raise RuntimeError(f'a whole file is read otherwise than by Pillow {ours.shape}')
    # Behind the first frame of an animation there may be any damage.
    if kind in CHECKED and theirs is None and not np.array_equal(ours, reference(whole)):
        raise RuntimeError('a file that Pillow finds damaged is read')
    return 'as Pillow' if same else 'damage that no checksum tells'


def folders(folder):
    """Folders that hold anything, with maps of classes beside them or not: told, or read."""

    def case(rng):
        seed = int(rng.integers(2**32))
        mapped, pairs = bool(rng.integers(2)), rng.random() < 0.2

        def act():
            root = folder / 'root'
            root.mkdir()
            try:
                made = np.random.default_rng(seed)
                _grow(made, root / 'images', depth=2)
                if mapped and made.random() < 0.7:
                    shutil.copytree(
                        root / 'images', root / 'maps', symlinks=True, copy_function=_map
                    )
                section = Folder(
                    path=str(root / 'images'),
                    pairs=pairs,
                    map_path=str(root / 'maps') if mapped else None,
                    map_classes=int(made.integers(1, 255)) if mapped else None,
                    reduce_zero_label=bool(mapped and made.integers(2)),
                )
                config = DataConfig(source=section, crop=Crop(mode='resize'), image_size=(8, 8))
                source = make_source(
                    config, split=str(made.choice(['train'] * 5 + ['val', 'other']))
                )
                view = config.view(maps=('map',) if mapped else ())
                views = {'images': view} | ({'pair': config.view(of='other')} if pairs else {})
                elements = EvalElements(source, config, views)
                source.fingerprint()
                read = [elements(i) for i in range(len(source))]
                return 'read' if any(element['valid'] for element in read) else 'all corrupt'
            finally:
                shutil.rmtree(os.fsencode(root))

        return f'tree {seed}, maps {mapped}, pairs {pairs}', act

    return case


def _grow(rng, path, *, depth):
    """A folder with files, folders, links and pipes of odd names."""
    os.mkdir(os.fsencode(path))
    for _ in range(int(rng.integers(0, 5))):
        stem = str(rng.choice([*NAMES, 'train', 'val', 'dog', '.hidden', '__MACOSX', 'a_1', 'a_2']))
        at = path / stem
        kind = int(rng.integers(14)) if depth else int(rng.integers(3, 14))
        if kind >= 3:
            at = path / f'{stem}{rng.choice([".png", ".png", ".JPG", ".txt", ""])}'
        target = os.fsencode(at)
        if os.path.lexists(target):
            continue
        if kind < 3:
            _grow(rng, at, depth=depth - 1)
        elif kind == 3:
            os.symlink(target, target)
        elif kind == 4:
            os.symlink(os.fsencode(path), target)
        elif kind == 5:
            os.mkfifo(target)
        else:
            data, *_ = picture(rng)
            with open(target, 'wb') as file:
                file.write(damaged(rng, data) if rng.random() < 0.3 else data)


def _map(source, target, *, follow_symlinks=True):
    """In the place of an image a map: numbers that may be classes, or the image itself."""
    del follow_symlinks
    rng = np.random.default_rng(len(os.fsencode(source)))
    if not os.path.isfile(source):
        return target
    if rng.random() < 0.3:
        return shutil.copyfile(source, target)
    Image.fromarray(rng.integers(0, 256, (5, 7), dtype=np.uint8)).save(target, 'PNG')
    return target
