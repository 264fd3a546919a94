"""Images in a folder: class sub-folders, or flat without labels."""

import os

import numpy as np

from mim_jax.data.decode import CorruptImage
from mim_jax.errors import UserError

SUFFIXES = ('.jpg', '.jpeg', '.png', '.bmp', '.webp', '.gif', '.tif', '.tiff', '.ppm', '.pgm')
# Names under which the parts of a set are found, in the order of preference.
SPLIT_NAMES = {
    'train': ('train',),
    'test': ('test', 'val', 'validation'),
    'val': ('val', 'validation', 'test'),
    'validation': ('validation', 'val', 'test'),
}


class ImageFolder:
    """The images below a folder, sorted by name.

    With class sub-folders (`path/dog/0.jpg`, also deeper) the label is the sub-folder's place in
    the sorted list of sub-folders; images that lie in the folder itself have no label. Where
    `path` has a sub-folder for the split (train, test, val, validation), that one is read, and
    class numbers are those of `train`.

    Raises:
      UserError: the folder is missing, has no images, no part of the split's name, or classes
        that `train` does not have.
    """

    def __init__(self, path, *, split):
        path = os.path.abspath(os.path.expanduser(path))
        if not os.path.isdir(path):
            raise UserError(
                f'config.data.path: there is no folder {path}: give the folder that holds the '
                f'images, one sub-folder per class or all in one'
            )
        self._root = _split_folder(path, split)
        training = os.path.join(path, 'train')
        classes = _class_names(training if os.path.isdir(training) else self._root)
        names, labels = [], []
        for name in _class_names(self._root):
            found = _images_below(self._root, name)
            if found and name not in classes:
                raise UserError(
                    f'config.data.path: the class folder {os.path.join(self._root, name)} has no '
                    f'counterpart in {training}: both parts need the same class names'
                )
            names += found
            labels += [classes.index(name)] * len(found) if found else []
        flat = not names
        if flat:
            names = sorted(n for n in os.listdir(self._root) if _is_image(n))
        if not names:
            raise UserError(
                f'config.data.path: no images in {self._root} or its sub-folders: expected files '
                f'that end in {", ".join(SUFFIXES)}'
            )
        self.classes = None if flat else classes
        self.num_classes = None if flat else len(classes)
        self._labels = None if flat else np.array(labels, np.int32)
        # One block of bytes: a million Python strings would be copied slowly to every worker.
        encoded = [os.fsencode(name) for name in names]
        self._offsets = np.cumsum([0] + [len(name) for name in encoded])
        self._names = b''.join(encoded)

    def __len__(self):
        return len(self._offsets) - 1

    def __getitem__(self, index):
        try:
            with open(self.describe(index), 'rb') as file:
                item = {'image': file.read()}
        except OSError as error:
            raise CorruptImage(error.strerror or str(error)) from error
        if self._labels is not None:
            item['label'] = int(self._labels[index])
        return item

    def describe(self, index):
        start, end = self._offsets[index : index + 2]
        return os.path.join(self._root, os.fsdecode(self._names[start:end]))


def _split_folder(path, split):
    for name in SPLIT_NAMES.get(split, (split,)):
        if os.path.isdir(os.path.join(path, name)):
            return os.path.join(path, name)
    others = [n for n in SPLIT_NAMES if os.path.isdir(os.path.join(path, n))]
    if others or split != 'train':
        raise UserError(
            f'config.data.path: {path} has no sub-folder for the split {split!r}: expected one of '
            f'{", ".join(SPLIT_NAMES.get(split, (split,)))} '
            f'(without evaluation images, set config.data.eval_split=none)'
        )
    return path


def _class_names(root):
    with os.scandir(root) as entries:
        return sorted(e.name for e in entries if e.is_dir() and not e.name.startswith('.'))


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
