"""Sets of images made to test classifiers of another set: their folders and their classes."""

import os
from collections.abc import Sequence

import numpy as np

from mim_jax.data.folder import Folder, ImageFolder, class_names
from mim_jax.errors import UserError

# AlexNet's errors on ImageNet-C, means over the five severities: what a corruption error is divided
# by. Source: Hendrycks and Dietterich (ICLR 2019), github.com/hendrycks/robustness.
ALEXNET_ERRORS = {
    'gaussian_noise': 0.886428,
    'shot_noise': 0.894468,
    'impulse_noise': 0.922640,
    'defocus_blur': 0.819880,
    'glass_blur': 0.826268,
    'motion_blur': 0.785948,
    'zoom_blur': 0.798360,
    'snow': 0.866816,
    'frost': 0.826572,
    'fog': 0.819324,
    'brightness': 0.564592,
    'contrast': 0.853204,
    'elastic_transform': 0.646056,
    'pixelate': 0.717840,
    'jpeg_compression': 0.606500,
}
SEVERITIES = range(1, 6)


def classes_of(
    folders: Sequence[str], names: Sequence[str], *, field: str, path: str
) -> np.ndarray:
    """Which of the classes `names` each of a set's class folders is, int32.

    Raises UserError, beginning with the config's `field`, where one is none of them.
    """
    numbers = {name: number for number, name in enumerate(names)}
    unknown = [folder for folder in folders if folder not in numbers]
    if unknown:
        more = f' and {len(unknown) - 1} more' if len(unknown) > 1 else ''
        raise UserError(
            f'{field}: {path} has the class folder {unknown[0]}{more}, but the training data have '
            f'no such class (theirs: {", ".join(names[:3])}, …): leave this set out, or train on '
            'data of the same class names'
        )
    return np.array([numbers[folder] for folder in folders], np.int32)


def numbered_classes_of(
    folders: Sequence[str], names: Sequence[str], *, field: str, path: str
) -> np.ndarray:
    """As `classes_of`, of folders that are numbers: of the sorted names, all of them."""
    if not all(folder.isascii() and folder.isdecimal() for folder in folders):
        return classes_of(folders, names, field=field, path=path)
    if sorted(map(int, folders)) != list(range(len(names))):
        raise UserError(
            f'{field}: {path} has {len(folders)} numbered class folders, which are to be the '
            f'numbers 0 to {len(names) - 1} of the {len(names)} classes of the training data in '
            'sorted order'
        )
    order = np.argsort(np.array(names))
    return order[[int(folder) for folder in folders]].astype(np.int32)


def open_set(path: str, *, field: str) -> ImageFolder:
    """The images of class folders. Raises UserError, beginning with the config's `field`."""
    try:
        source = ImageFolder(Folder(path=path), split='train')
    except UserError as error:
        # The folder of a data source knows only that field.
        raise UserError(str(error).replace('config.data.source.path', field)) from error
    if source.classes is None:
        raise UserError(f'{field}: {path} has images, but no class folders')
    return source


def corrupted_sets(path: str, *, field: str) -> dict[str, list[str]]:
    """The folders of every corruption's five severities, PATH/CORRUPTION/SEVERITY or, as the files
    are grouped for download, PATH/GROUP/CORRUPTION/SEVERITY.

    Raises UserError, beginning with the config's `field`, where one is missing.
    """
    path = os.path.abspath(os.path.expanduser(path))
    if not os.path.isdir(path):
        raise UserError(f'{field}: there is no folder {path}')
    groups = [path, *(os.path.join(path, name) for name in class_names(path))]
    found, missing = {}, []
    for name in ALEXNET_ERRORS:
        folders = [os.path.join(group, name) for group in groups]
        folder = next(filter(os.path.isdir, folders), folders[0])
        found[name] = [os.path.join(folder, str(severity)) for severity in SEVERITIES]
        missing += [inner for inner in found[name] if not os.path.isdir(inner)]
    if missing:
        raise UserError(
            f'{field}: {len(missing)} of the {len(found) * len(SEVERITIES)} folders '
            f'CORRUPTION/SEVERITY are missing below {path} (the first: {missing[0]}): the mean '
            'is defined over all of them'
        )
    return found
