"""A folder of images as a few large ArrayRecord files, laid out as TensorFlow Datasets does.

    python -m mim_jax.data.pack SOURCE --out=PATH/NAME [--shorter_side=256 [--quality=90]]
        [--records_per_file=2048] [--workers=N] [--holdout=0.1] [--max_corrupt_share=0.1]

Network storage lists and opens a million small files slowly, and some hundred large ones quickly.
A run reads them with `data.source.name=tfds`; the last line printed has its flags. SOURCE is read
as `data.source.name=folder` reads it: its order, classes and splits are those of such a run.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import re
import shlex
import sys
from pathlib import Path

import cv2
import grain
import numpy as np
from tqdm import tqdm

from mim_jax.data import decode, pipeline, resample
from mim_jax.data.config import DataConfig
from mim_jax.data.folder import Folder, ImageFolder, split_folders
from mim_jax.data.shards import check_shards
from mim_jax.errors import UserError
from mim_jax.folders import new_folder
from mim_jax.ranges import Range

VERSION = '1.0.0'
# So many images travel together between processes.
TOGETHER = 16
# Every record by itself, for reading in any order; JPEG files are compressed already.
OPTIONS = 'group_size:1,uncompressed'


def as_stored(data: bytes, *, shorter_side: int | None, quality: int) -> bytes:
    """The file to store for a file.

    A picture whose shorter side has more than `shorter_side` pixels is resized to that and encoded
    anew, as a JPEG of `quality`. Every other file stays as it is, byte by byte; None: all do.

    Raises CorruptImage where training could not read it.
    """
    expected = decode.jpeg_size(data)
    image = decode.decode(data, channels=3)
    size = image.shape[:2]
    if expected not in (None, size):
        raise decode.CorruptImage('JPEG header and picture differ in size')
    if shorter_side is None or min(size) <= shorter_side:
        return data
    small = tuple(round(side * shorter_side / min(size)) for side in size)
    image = cv2.cvtColor(resample.resize(image, small), cv2.COLOR_RGB2BGR)
    return cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()


@dataclasses.dataclass(frozen=True)
class _Reader:
    """Number of an image in its folder -> (bytes to store, label or None), or what is wrong with
    it, in words; picklable.
    """

    source: ImageFolder
    shorter_side: int | None
    quality: int

    def __call__(self, index: int) -> tuple[bytes, int | None] | str:
        try:
            item = self.source[index]
            data = as_stored(item['image'], shorter_side=self.shorter_side, quality=self.quality)
            return data, item.get('label')
        except decode.CorruptImage as error:
            return str(error)


def pack(
    path: str,
    out: str,
    *,
    shorter_side: int | None = None,
    quality: int = 90,
    records_per_file: int = 2048,
    workers: int = 0,
    holdout: float = 0.1,
    holdout_seed: int = 0,
    max_corrupt_share: float = 0.1,
    shuffle_seed: int | None = None,
) -> dict[str, int]:
    """Writes the images below `path` to the folder `out`, whole or not at all.

    Without splits of its own, `holdout` of its classes become the split `test`, those that a run on
    the folder would hold out. Records are in the order of the folder, or in one that is drawn from
    `shuffle_seed`. What is written does not depend on `workers`, decoding processes (0:
    two threads of this one).

    Returns:
      split -> how many images it has.

    Raises:
      UserError: no such images, `out` is not empty or no name of a dataset, more images than
        `max_corrupt_share` of a split cannot be read, or the disk is full.
    """
    out = Path(out).expanduser().absolute()
    if not re.fullmatch('[a-z][a-z0-9_]*', out.name):
        raise UserError(
            f'--out={out}: its last part is the name of the dataset, which has small letters, '
            'digits and underscores: call it otherwise'
        )
    lengths = {}
    with new_folder(out) as folder:
        found = sources(path, holdout=holdout, holdout_seed=holdout_seed)
        features = _features(found)
        inner = folder / VERSION
        inner.mkdir()
        for split, source in found.items():
            order = np.arange(len(source))
            if shuffle_seed is not None:
                np.random.default_rng(shuffle_seed).shuffle(order)
            read = _read(order, _Reader(source, shorter_side, quality), workers=workers)
            progress = tqdm(read, split, total=len(source), disable=None, unit=' images')
            numbered = zip(order.tolist(), progress, strict=True)
            good = _good(numbered, source, split=split, share=max_corrupt_share)
            lengths[split] = _write(good, inner, f'{out.name}-{split}', records_per_file)
            if not lengths[split]:
                raise UserError(f'none of the images in {source.root} can be read: repair them')
        _write_metadata(inner, features, lengths)
    return {split: sum(counts) for split, counts in lengths.items()}


def sources(path: str, *, holdout: float, holdout_seed: int) -> dict[str, ImageFolder]:
    """Split -> its images. Raises UserError where there are none."""
    path = os.path.expanduser(path)
    section = Folder(path=path, holdout=holdout, holdout_seed=holdout_seed)
    splits = split_folders(path)
    if splits:
        return {split: ImageFolder(section, split=split) for split in splits}
    train = ImageFolder(section, split='train', holdout=holdout)
    if train.note is None:
        return {'train': train}
    return {'train': train, 'test': ImageFolder(section, split='test', holdout=holdout)}


def _features(found):
    """Of TFDS, for the fields that all splits have."""
    from tensorflow_datasets import features as kinds

    first, *others = found.values()
    for source in others:
        if source.fields != first.fields:
            raise UserError(
                f'{first.root} has class folders and {source.root} has none, or the other way '
                'round: the splits of a dataset must hold the same'
            )
    features = {'image': kinds.Image(shape=(None, None, 3))}
    if (names := first.classes) is not None:
        # They are stored one a line, and blanks around them are lost.
        bad = next((name for name in names if not name.isprintable() or name != name.strip()), None)
        if bad is not None:
            raise UserError(
                f'the class folder {bad!r} in {first.root} cannot be stored: its name has blanks '
                'around it or signs that cannot be printed; call it otherwise'
            )
        features['label'] = kinds.ClassLabel(names=names)
    return features


def _read(order, reader, *, workers):
    """What a reader gives for the images of its folder, in this order."""
    dataset = grain.MapDataset.source(order.tolist()).map(reader)
    dataset = dataset.batch(TOGETHER, batch_fn=_together)
    with contextlib.closing(pipeline.run(dataset, DataConfig(workers=workers))) as batches:
        for batch in batches:
            yield from batch['results']


def _together(results):
    return {'results': list(results)}


def _good(numbered, source, *, split, share):
    """Records of the images that can be read, from pairs of number and result, the others being
    named.

    Raises UserError when those are more than a share of the split.
    """
    from tensorflow_datasets.proto import tf_example_pb2

    corrupt = []
    for index, result in numbered:
        if isinstance(result, str):
            corrupt.append(source.describe(index))
            print(f'left out: {corrupt[-1]} ({result})', file=sys.stderr)
            if len(corrupt) > share * len(source):
                raise UserError(
                    f'{len(corrupt)} of {len(source)} images of the split {split} cannot be read, '
                    f'more than --max_corrupt_share={share:g} allows (the first: {corrupt[0]}): '
                    'repair or remove them, or raise that share'
                )
            continue
        image, label = result
        example = tf_example_pb2.Example()
        example.features.feature['image'].bytes_list.value.append(image)
        if label is not None:
            example.features.feature['label'].int64_list.value.append(label)
        yield example.SerializeToString(deterministic=True)


def _write(records, folder, name, records_per_file):
    """Writes records to files; returns how many there are in each. Raises UserError."""
    from array_record.python import array_record_module

    counts, records = [], iter(records)
    for first in records:
        path = folder / str(len(counts))
        writer, count = array_record_module.ArrayRecordWriter(str(path), OPTIONS), 0
        for record in itertools.chain([first], itertools.islice(records, records_per_file - 1)):
            with _told():
                writer.write(record)
            count += 1
        with _told():
            writer.close()
        counts.append(count)
    for i in range(len(counts)):
        (folder / str(i)).rename(folder / f'{name}.array_record-{i:05}-of-{len(counts):05}')
    return counts


@contextlib.contextmanager
def _told():
    """What a writer says when it cannot write, as a UserError."""
    try:
        yield
    except RuntimeError as error:
        raise UserError(f'nothing is packed: {str(error).split(";")[0]}') from error


def _write_metadata(folder, features, lengths):
    """What TFDS keeps beside the files, which are looked at once more."""
    import tensorflow_datasets as tfds

    sizes = {split: sum(p.stat().st_size for p in folder.glob(f'*-{split}.*')) for split in lengths}
    infos = [
        tfds.core.SplitInfo(name=split, shard_lengths=counts, num_bytes=sizes[split])
        for split, counts in lengths.items()
    ]
    tfds.folder_dataset.write_metadata(
        data_dir=folder, features=features, split_infos=infos, version=VERSION, check_data=False
    )
    splits = tfds.builder_from_directory(folder).info.splits
    for split in lengths:
        check_shards(splits[split].file_instructions, mend='is the disk full? Pack again')


def main(argv: list[str] | None = None) -> int:
    """Runs the command line."""
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.data.pack', description=__doc__.split('\n\n')[0], allow_abbrev=False
    )
    add, count, share = parser.add_argument, _number(int, Range(1)), _number(float, Range(0, 1))
    seed = _number(int, Range(0, 2**32 - 1))
    add('path', metavar='SOURCE', help='SPLIT/CLASS/*, CLASS/*, or images without classes')
    add('--out', required=True, metavar='PATH/NAME', help='a new folder, for the dataset NAME')
    add('--shorter_side', type=count, metavar='N', help='of larger images (default: as they are)')
    add('--quality', type=_number(int, Range(1, 100)), default=90, help='of their JPEG files (90)')
    add('--records_per_file', type=count, default=2048, metavar='N', help='(2048)')
    add('--workers', type=_number(int, Range(0)), default=os.cpu_count(), help='(one per core)')
    add('--holdout', type=_number(float, Range(0, 1, high_open=True)), default=0.1, help='(0.1)')
    add('--holdout_seed', type=seed, default=0, help='(0)')
    add('--max_corrupt_share', type=share, default=0.1, help='of a split (0.1)')
    add('--shuffle_seed', type=seed, help='of their order (default: as in the folder)')
    options = parser.parse_args(argv)
    try:
        counts = pack(**vars(options))
    except (UserError, OSError) as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    out = Path(options.out).expanduser().absolute()
    print(', '.join(f'{split}: {count:,} images' for split, count in counts.items()))
    flags = {'source.name': 'tfds', 'source.path': out.parent}
    flags['source.dataset'] = f'{out.name}:{VERSION}'
    train, *others = counts
    flags |= {'split': train, 'eval_split': others[0] if others else 'none'}
    print(shlex.join(f'--config.data.{name}={value}' for name, value in flags.items()))
    return 0


def _number(kind, allowed):
    """A flag's type."""

    def parsed(text):
        try:
            value = kind(text)
        except ValueError:
            value = None
        if value is None or value not in allowed:
            raise argparse.ArgumentTypeError(f'{text!r}, must be {allowed}')
        return value

    return parsed


if __name__ == '__main__':
    sys.exit(main())
