"""One direction per class: from prompts, from a file of text embeddings, or from training images.

Directions are float32 [C,D], unit length, in the order of the labels.
"""

from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy

from mim_jax.errors import UserError

PROMPT = 'a photo of a {}.'


def from_prompts(
    path: str | Path, names: list[str], *, prompts: list[str], width: int
) -> np.ndarray:
    """Directions from the text tower in `path`: the mean over `prompts`, each with {} for the name,
    of unit embeddings (CLIP's prompt ensembling).

    Raises UserError for a prompt without {}, or embeddings not as wide as the teacher's tokens.
    """
    from mim_jax.weights.text import encode_prompts

    for prompt in prompts:
        if '{}' not in prompt:
            raise UserError(f'--prompt={prompt!r} has no {{}}, where the class name goes')
    texts = [prompt.replace('{}', name) for name in names for prompt in prompts]
    embeddings = np.asarray(encode_prompts(path, texts))
    means = embeddings.reshape(len(names), len(prompts), -1).mean(axis=1)
    return _directions(means, shape=(len(names), width), what=f'--text={path}')


def from_file(path: str | Path, *, num_classes: int, width: int) -> np.ndarray:
    """Directions from an array [num_classes, width] in a .npy, .npz or .safetensors file.

    Raises UserError where the file cannot be read or holds anything else.
    """
    what = f'--text_embeddings={path}'
    suffix = Path(path).suffix
    try:
        if suffix == '.safetensors':
            arrays = list(safetensors.numpy.load_file(path).values())
        elif suffix == '.npz':
            with np.load(path) as file:
                arrays = [file[name] for name in file.files]
        elif suffix == '.npy':
            arrays = [np.load(path)]
        else:
            raise UserError(f'{what}: give a .npy, .npz or .safetensors file')
    except (OSError, ValueError, EOFError, safetensors.SafetensorError) as error:
        raise UserError(f'{what} cannot be read as an array of numbers: {error}') from error
    if len(arrays) != 1:
        raise UserError(f'{what} holds {len(arrays)} arrays; give a file with one')
    return _directions(arrays[0], shape=(num_classes, width), what=what)


def from_sums(sums: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Directions from the sums [C,D] of the tokens of each class's training images, of which there
    are `counts` [C].

    Averaging tokens in groups leaves an image's mean token as it is, so one direction serves
    tokens and groups. Raises UserError for a class without images.
    """
    if not counts.all():
        empty = np.flatnonzero(counts == 0)
        raise UserError(
            f'{len(empty)} of {len(counts)} classes have no image among the {counts.sum()} that '
            f'were read for training (the first: class {empty[0]}): raise --max_train'
        )
    means = sums / counts[:, None]
    return _directions(means, shape=means.shape, what="the teacher's mean tokens")


def read_names(path: str | Path, *, num_classes: int) -> list[str]:
    """Class names, one per line in the order of the labels; empty lines at the end do not count.

    Raises UserError where the file cannot be read or has another number of names.
    """
    try:
        names = Path(path).read_text(encoding='utf-8').rstrip().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f'--classes={path} cannot be read: {error}') from error
    if len(names) != num_classes:
        raise UserError(
            f'--classes={path} has {len(names)} lines, the data has {num_classes} classes: give '
            'one name per line, in the order of the labels'
        )
    return [name.strip() for name in names]


def _directions(vectors, *, shape, what):
    if vectors.dtype.kind not in 'fiu' or vectors.ndim != 2:
        raise UserError(f'{what} is {vectors.dtype} {vectors.shape}, not numbers [classes, width]')
    if len(vectors) != shape[0]:
        raise UserError(f'{what} has {len(vectors)} classes, the data has {shape[0]}')
    if vectors.shape[1] != shape[1]:
        raise UserError(
            f"{what} has width {vectors.shape[1]}, the teacher's tokens have {shape[1]}: text and "
            "images need one space, as CLIP's projected tokens have"
        )
    vectors = vectors.astype(np.float64)
    norm = np.linalg.norm(vectors, axis=1, keepdims=True)
    if not (np.isfinite(norm) & (norm > 0)).all():
        raise UserError(f'{what} has a class whose vector is zero or not finite')
    return (vectors / norm).astype(np.float32)
