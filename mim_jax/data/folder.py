"""Images in a folder: class sub-folders, or flat without labels; pairs of images; label maps."""

import dataclasses
import hashlib
import os
import stat

import numpy as np

from mim_jax.data.decode import CorruptImage
from mim_jax.data.fields import Field, image_fields, label_field
from mim_jax.data.holdout import held_out
from mim_jax.errors import UserError
from mim_jax.ranges import Classes, Fraction, Seed

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
# Names under which the parts of a set are found, in the order of preference.
SPLIT_NAMES = {
    'train': ('train',),
    'test': ('test', 'val', 'validation'),
    'val': ('val', 'validation', 'test'),
    'validation': ('validation', 'val', 'test'),
}


# The two images of a pair, by the end of their stems.
PAIR = ('_1', '_2')
# What archivers leave beside class folders.
NO_CLASSES = ('__MACOSX',)
# By a fingerprint: a million questions to network storage would take minutes.
SIZES_LOOKED_AT = 10_000


@dataclasses.dataclass(frozen=True)
class Folder:
    """Config section of a folder of images.

    path: the folder; see `ImageFolder`.
    pairs: images come in pairs, STEM_1 and STEM_2 in one folder with the same ending; they are the
      fields `image` and `other` of one item.
    map_path: a folder laid out as `path` is, with a map of the same relative stem for every image,
      a grey PNG of one number per pixel; it is the field `map`.
    map_classes: the classes are 0..map_classes-1, and 255 stands for no class; None: not known.
    reduce_zero_label: in the files 0 stands for no class and k for class k - 1, as in ADE20K.
    holdout: share of the images of every class that are held out as the evaluation split where
      `path` has no sub-folders for splits, unless data.eval_split is none; see
      `mim_jax.data.holdout`.
    holdout_seed: another number holds out others.
    """

    path: str | None = None
    pairs: bool = False
    map_path: str | None = None
    map_classes: Classes | None = None
    reduce_zero_label: bool = False
    holdout: Fraction = 0.1
    holdout_seed: Seed = 0

    def __post_init__(self):
        if self.reduce_zero_label and not self.map_classes:
            raise ValueError('reduce_zero_label needs map_classes, the number of those left.')

    def open(self, data, *, split):
        """The images of a split; see `ImageFolder`."""
        if not self.path:
            raise UserError(
                'config.data.source.path is not set: give the folder that holds the images, one '
                'sub-folder per class or all in one'
            )
        # The images of an undivided folder are those held out and `train`, the others.
        evaluated = data.eval_split not in (None, data.split)
        divided = evaluated and 'train' in (data.split, data.eval_split)
        return ImageFolder(self, split=split, holdout=self.holdout if divided else 0)

    def assumed_fields(self):
        """Those that the section brings, and a label of as many classes as ImageNet has."""
        return (*image_fields(1000), *self.extra_fields())

    def extra_fields(self):
        """The fields beside image and label."""
        other = Field('other', 'image')
        reduced = self.reduce_zero_label
        classes = Field('map', 'map', num_classes=self.map_classes, reduce_zero_label=reduced)
        return (other,) * self.pairs + (classes,) * (self.map_path is not None)


class ImageFolder:
    """The images below a folder, sorted by name.

    With class sub-folders (`path/dog/0.jpg`, also deeper) the label is the sub-folder's place in
    the sorted list of sub-folders; without any, the images in the folder itself have no label.
    Where `path` has a sub-folder for the split (train, test, val, validation), that one is read,
    and class numbers are those of `train`. Where it has none for any split, `holdout` of the
    images of its classes are the evaluation split and the others are `train`; `note` says so.

    Args:
      section: a `Folder`.
      split: name of the part.
      holdout: share of the images, 0: all are `train`.

    Raises:
      UserError: the folder is missing, has no images, images beside its class folders, no part of
        the split's name, classes that `train` does not have, or an image without its counterpart.
    """

    note = None

    def __init__(self, section, *, split, holdout=0):
        path = _existing(section.path, 'path', 'the images')
        self.root = _split_folder(path, split, undivided=holdout > 0)
        training = os.path.join(path, 'train')
        classes = class_names(training if os.path.isdir(training) else self.root)
        names, labels, empty = [], [], []
        for name in class_names(self.root):
            found = _images_below(self.root, name)
            if not found and self.root in (training, path):
                empty.append(os.path.join(self.root, name))
            if found and name not in classes:
                raise UserError(
                    f'config.data.source.path: the class folder {os.path.join(self.root, name)} '
                    f'has no counterpart in {training}: both parts need the same class names'
                )
            names += found
            labels += [classes.index(name)] * len(found) if found else []
        if names and empty:
            raise UserError(
                f'config.data.source.path: the class folder {empty[0]} has no images: put some in, '
                f'or remove it'
            )
        loose = sorted(n for n in os.listdir(self.root) if _is_image(n))
        if names and loose:
            raise UserError(
                f'config.data.source.path: {self.root} has class folders and beside them '
                f'{len(loose)} images without a class (the first: {loose[0]}): move them into a '
                f'class folder, or out of this one'
            )
        flat = not names
        names = loose if flat else names
        if not names:
            raise UserError(
                f'config.data.source.path: no images in {self.root} or its sub-folders: expected '
                f'files that end in {", ".join(SUFFIXES)}'
            )
        labels = np.array(labels, np.int32)
        if section.pairs:
            first = _first_of_pairs(names, self.root)
            names, labels = [names[i] for i in first], labels[first] if len(labels) else labels
        labels = None if flat else labels
        if flat and self.root == path and split != 'train':
            raise _no_split(path, split, field='path')
        if holdout and not flat and self.root == path:
            held = held_out(names, labels, share=holdout, seed=section.holdout_seed)
            names, labels = self._divided(names, labels, held, split=split, holdout=holdout)
        self.classes = None if flat else classes
        label = () if flat else (label_field(len(classes), classes),)
        self.fields = (*image_fields(), *label, *section.extra_fields())
        self._labels = labels
        self._names = _Strings(names)
        self._pairs = section.pairs
        self._maps = None
        if section.map_path is not None:
            map_path = _existing(section.map_path, 'map_path', "the images' maps")
            undivided = self.note is not None
            self._map_root = _split_folder(map_path, split, field='map_path', undivided=undivided)
            self._maps = _Strings(_maps_of(names, self._map_root))

    def _divided(self, names, labels, held, *, split, holdout):
        """Names and labels of the split, of those that are `held` out and the others."""
        if not held.any():
            raise UserError(
                f'config.data.source.holdout = {holdout:g}: {self.root} has no class of two images '
                'or more, of which one could be held out for evaluation; set '
                'config.data.eval_split=none'
            )
        self.note = (
            f'evaluated on {held.sum():,} of {len(held):,} images held out '
            f'(data.source.holdout={holdout:g})'
        )
        kept = np.flatnonzero(held != (split == 'train'))
        return [names[i] for i in kept], labels[kept]

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        path = self.describe(index)
        files = _Files(image=path)
        if self._pairs:
            files.paths['other'] = _second_of_pair(path)
        if self._maps is not None:
            files.paths['map'] = os.path.join(self._map_root, self._maps[index])
        if self._labels is not None:
            files['label'] = int(self._labels[index])
        return files

    def describe(self, index):
        return os.path.join(self.root, self._names[index])

    def fingerprint(self):
        """Of all names and labels, and the sizes of up to SIZES_LOOKED_AT files."""
        digest = hashlib.sha256(self._names.block)
        if self._labels is not None:
            digest.update(self._labels.tobytes() + os.fsencode('\0'.join(self.classes)))
        if self._maps is not None:
            digest.update(self._maps.block)
        count = min(len(self), SIZES_LOOKED_AT)
        for i in range(count):
            path = self.describe(i * len(self) // count)
            size = os.path.getsize(path) if os.path.exists(path) else -1
            digest.update(size.to_bytes(8, 'little', signed=True))
        return digest.hexdigest()


class _Files(dict):
    """An item whose files are read when they are asked for: no view, no reading."""

    def __init__(self, **paths):
        super().__init__()
        self.paths = paths

    def __missing__(self, name):
        self[name] = read_file(self.paths[name])
        return self[name]


class _Strings:
    """A list of names as one block of bytes: a million Python strings would be copied slowly to
    every worker."""

    def __init__(self, names):
        encoded = [os.fsencode(name) for name in names]
        self._offsets = np.cumsum([0] + [len(name) for name in encoded])
        self.block = b''.join(encoded)

    def __len__(self):
        return len(self._offsets) - 1

    def __getitem__(self, index):
        start, end = self._offsets[index : index + 2]
        return os.fsdecode(self.block[start:end])


def read_file(path):
    """The bytes of a file; one that cannot be read is a CorruptImage."""
    try:
        with open(path, 'rb', opener=_open) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise CorruptImage(f'{path}: not a file of bytes')
            return file.read()
    except OSError as error:
        raise CorruptImage(f'{path}: {error.strerror or error}') from error


def _open(path, flags):
    # A pipe without a writer would be waited for for ever.
    return os.open(path, flags | os.O_NONBLOCK)


def _existing(path, field, what):
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(path):
        raise UserError(
            f'config.data.source.{field}: there is no folder {path}: give the folder that holds '
            f'{what}'
        )
    return path


def _second_of_pair(name):
    stem, ending = os.path.splitext(name)
    return stem.removesuffix(PAIR[0]) + PAIR[1] + ending


def _first_of_pairs(names, root):
    """Places of the first images in the list; every image must belong to a pair."""
    present, first, paired = set(names), [], set()
    for i, name in enumerate(names):
        if os.path.splitext(name)[0].endswith(PAIR[0]) and _second_of_pair(name) in present:
            first.append(i)
            paired |= {name, _second_of_pair(name)}
    alone = next((name for name in names if name not in paired), None)
    if alone is not None:
        raise UserError(
            f'config.data.source.pairs: {os.path.join(root, alone)} has no counterpart: pairs are '
            f'called STEM{PAIR[0]} and STEM{PAIR[1]}, with the same ending'
        )
    return np.array(first)


def _maps_of(names, root):
    """The map's file, relative to root, for each image's."""
    found = {}
    for folder, _, files in os.walk(root):
        inner = os.path.relpath(folder, root)
        for name in filter(_is_image, files):
            path = os.path.normpath(os.path.join(inner, name))
            found[os.path.splitext(path)[0]] = path
    stems = [os.path.splitext(os.path.normpath(name))[0] for name in names]
    missing = next((stem for stem in stems if stem not in found), None)
    if missing is not None:
        raise UserError(
            f'config.data.source.map_path: {os.path.join(root, missing)}.png is missing: every '
            f'image needs a map of its own name'
        )
    return [found[stem] for stem in stems]


def _split_folder(path, split, *, field='path', undivided=False):
    """The folder of a split; `path` itself where it has none for any, of `train`, or of all splits
    if these are told apart otherwise (`undivided`).
    """
    for name in SPLIT_NAMES.get(split, (split,)):
        if os.path.isdir(os.path.join(path, name)):
            return os.path.join(path, name)
    if split_folders(path) or not (split == 'train' or undivided and split in SPLIT_NAMES):
        raise _no_split(path, split, field=field)
    return path


def split_folders(path):
    """Those names of SPLIT_NAMES that sub-folders of `path` have."""
    return [name for name in SPLIT_NAMES if os.path.isdir(os.path.join(path, name))]


def _no_split(path, split, *, field):
    expected = ', '.join(SPLIT_NAMES.get(split, (split,)))
    return UserError(
        f'config.data.source.{field}: {path} has no sub-folder for the split {split!r}: '
        f'expected one of {expected} (without evaluation images, set config.data.eval_split=none)'
    )


def class_names(root):
    """The sorted names of the sub-folders of a folder, which are its classes."""
    with os.scandir(root) as entries:
        # Not the entry's own `is_dir`, which fails at a link that leads to itself.
        names = sorted(e.name for e in entries if os.path.isdir(e) and not e.name.startswith('.'))
    return [name for name in names if name not in NO_CLASSES]


def _images_below(root, name):
    """Paths, relative to root, of the images in and below root/name, sorted."""
    found = []
    for folder, folders, files in os.walk(os.path.join(root, name)):
        folders.sort()
        inner = os.path.relpath(folder, root)
        found += [os.path.join(inner, f) for f in sorted(files) if _is_image(f)]
    return found


def _is_image(name):
    return name.lower().endswith(SUFFIXES) and not name.startswith('.')
