"""How consistent a teacher's tokens are, as they are and averaged in groups.

python -m mim_jax.pilot_study --teacher=PATH --data=embedded|DIR|tfds:NAME
    [--text=DIR [--prompt='a photo of a {}.' ...] [--classes=FILE] | --text_embeddings=FILE]

Prints a Markdown table and writes it to OUT/table.md, the figures to OUT/results.json and pictures
of token-wise predictions to OUT/predictions.png.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax
import numpy as np

from mim_jax import data, teachers
from mim_jax.data import Crop, DataConfig
from mim_jax.data.embedded import Embedded
from mim_jax.data.folder import Folder
from mim_jax.data.tfds import Tfds
from mim_jax.errors import UserError
from mim_jax.evaluators import EvenlySpaced
from mim_jax.folders import check_folder
from mim_jax.models.patches import patch_grid
from mim_jax.pilot_study import classes, figures, report, study
from mim_jax.visualize import layout, pictures
from mim_jax.visualize.draw import write_png

BATCH_SIZE = 64
# What turns a cosine with a text embedding into a logit: the value at which CLIP's is capped.
TEXT_SCALE = 100.0


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.pilot_study', description=__doc__.split('\n\n')[0]
    )
    teachers.add_flags(parser)
    add = parser.add_argument
    add('--data', required=True, metavar='embedded|DIR|tfds:NAME', help='labelled images')
    add('--train_split', default='train', help='split for the linear probe (default train)')
    add('--test_split', default='test', help='split for the figures (default test)')
    add('--image_size', type=teachers.size_flag, metavar='S or H,W', help="default: the teacher's")
    add('--max_train', type=_count, default=1024, help='training images (default 1024)')
    add('--max_test', type=_count, default=1024, help='test images (default 1024)')
    add('--num_groups', type=_count, help='groups of an image (default: half of its tokens)')
    add('--steps', type=_count, help='merging steps (default: as few as that takes)')
    text = parser.add_mutually_exclusive_group()
    text.add_argument('--text', metavar='DIR', help='imported weights with a text tower')
    text.add_argument('--text_embeddings', metavar='FILE', help='array [classes, width]')
    add('--prompt', action='append', help=f'with --text, may be repeated ({classes.PROMPT!r})')
    add('--classes', metavar='FILE', help='with --text: class names (default: of the folders)')
    add('--num_pictures', type=_count, default=6, help='images on the picture (default 6)')
    add('--out', default='runs/pilot_study', help='folder for results (default %(default)s)')
    arguments = parser.parse_args(argv)
    if not arguments.teacher:
        parser.error('the following arguments are required: --teacher')
    if not arguments.text and (arguments.prompt or arguments.classes):
        parser.error('--prompt and --classes need --text')
    return arguments


def main(argv: list[str] | None = None) -> Path:
    """Runs the command line and returns the folder of its results."""
    arguments = parse(argv)
    start = time.perf_counter()
    out = Path(arguments.out)
    check_folder(out)
    loaded = teachers.from_flags(arguments)
    config = data_config(arguments, loaded)
    train, test = sources(arguments, config)
    num_classes = data.num_classes(train.fields)
    grid = _grid(config.image_size, loaded)
    aggregation = study.Aggregation.make(
        grid[0] * grid[1], num_groups=arguments.num_groups, num_steps=arguments.steps
    )
    directions = text_directions(arguments, train, width=loaded.teacher.width)
    by = 'class-mean' if directions is None else 'zero-shot'

    def batches(source, limit):
        return data.eval_batches(EvenlySpaced(source, limit), config, batch_size=BATCH_SIZE)

    see = study.seer(loaded, aggregation)
    classifiers = study.learn(
        see,
        batches(train, arguments.max_train),
        num_classes=num_classes,
        directions=directions,
    )
    measured = study.measure(see, batches(test, arguments.max_test), classifiers, grid=grid)
    found = report.summary(measured)
    counts = {'num_tokens': aggregation.num_tokens, 'num_groups': aggregation.num_groups}
    table = report.table(found, by=by, **counts)
    setting = {
        'teacher': str(arguments.teacher),
        'data': arguments.data,
        'image_size': config.image_size,
        'num_steps': aggregation.num_steps,
        'num_classes': num_classes,
        'max_train': arguments.max_train,
        'num_test': len(measured['accuracy'][0]),
        'class_directions': 'text' if directions is not None else 'training means',
    }
    sheet = picture(
        see,
        classifiers,
        EvenlySpaced(test, arguments.num_pictures),
        config,
        grid=grid,
        by_text=directions is not None,
        **counts,
    )
    write_png(out / 'predictions.png', sheet)
    (out / 'table.md').write_text(table, encoding='utf-8')
    results = {**setting, **counts, 'figures': found}
    (out / 'results.json').write_text(json.dumps(results, indent=2) + '\n', encoding='utf-8')
    print(table)
    print(f'{setting["num_test"]} test images, {time.perf_counter() - start:.0f} s; {out}')
    return out


def data_config(arguments: argparse.Namespace, loaded: teachers.Loaded) -> DataConfig:
    """The section `data` that --data and --image_size stand for, whole images."""
    name = arguments.data
    size = arguments.image_size or loaded.image_size
    if name == 'embedded':
        source = Embedded()
        size = size or DataConfig().image_size
    elif name.startswith('tfds:'):
        source = Tfds(dataset=name.removeprefix('tfds:'))
    else:
        source = Folder(path=name)
    if size is None:
        raise UserError(
            f'--teacher={arguments.teacher} does not state the size of its images: give '
            '--image_size=S or --image_size=H,W, in pixels'
        )
    try:
        return DataConfig(
            image_size=size if len(size) == 2 else size * 2,
            channels=loaded.channels,
            mean=loaded.teacher.mean,
            std=loaded.teacher.std,
            crop=Crop(mode='resize'),
            source=source,
        )
    except ValueError as error:
        raise UserError(f'--data={name}: {error}') from None


def sources(arguments: argparse.Namespace, config: DataConfig) -> tuple[data.Source, data.Source]:
    """The training and the test images.

    Raises UserError where they are not there or have no labels.
    """
    found = []
    for split in (arguments.train_split, arguments.test_split):
        try:
            source = data.make_source(config, split=split)
        except UserError as error:
            raise UserError(f'--data={arguments.data}, split {split!r}: {error}') from error
        num_classes = data.num_classes(source.fields)
        if num_classes is None:
            raise UserError(
                f'--data={arguments.data}: the images have no labels; the pilot study needs '
                'classes (a folder with one sub-folder per class in train/ and in test/)'
            )
        if num_classes < 2:
            raise UserError(f'--data={arguments.data}: there is one class only, give at least two')
        found.append(source)
    return found[0], found[1]


def text_directions(
    arguments: argparse.Namespace, source: data.Source, *, width: int
) -> np.ndarray | None:
    """Class directions from text, if the flags name one; see `classes`."""
    num_classes = data.num_classes(source.fields)
    if arguments.text_embeddings:
        return classes.from_file(arguments.text_embeddings, num_classes=num_classes, width=width)
    if not arguments.text:
        return None
    names = getattr(source, 'classes', None)  # of folders
    if arguments.classes:
        names = classes.read_names(arguments.classes, num_classes=num_classes)
    if names is None:
        raise UserError(f'--data={arguments.data} has no class names: give --classes=FILE')
    prompts = arguments.prompt or [classes.PROMPT]
    return classes.from_prompts(arguments.text, names, prompts=prompts, width=width)


def picture(see, classifiers, source, config, *, grid, by_text, num_tokens, num_groups):
    """A uint8 sheet: photo, predictions of tokens and of groups, by text and by the probes.

    Raises UserError where none of the images can be read.
    """
    (batch,) = data.eval_batches(source, config, batch_size=len(source))
    valid = batch['valid']
    images, labels = batch['images'][valid], batch['labels'][valid]
    if not len(images):
        raise UserError(f'None of the images can be read (the first: {source.describe(0)})')

    def by_cosine(tokens):
        return TEXT_SCALE * figures.cosines(tokens, classifiers.directions)

    judges = {'linear probe': classifiers.probes}
    if by_text:
        judges = {'zero-shot': (by_cosine, by_cosine)} | judges
    seen = {f'{num_tokens} tokens': 0, f'{num_groups} groups': 1}
    both = see(images)
    panels = {'input': pictures.to_rgb(images)}
    for name, judge in judges.items():
        for title, which in seen.items():
            probabilities = np.asarray(jax.nn.softmax(judge[which](both[which])))
            panels[f'{name}, {title}'] = report.shade(images, probabilities, labels, grid=grid)
    return layout.sheet(list(panels.values()), titles=list(panels), legend=report.legend())


def _grid(image_size, loaded):
    try:
        return patch_grid(image_size, loaded.teacher.model.patch_size)
    except UserError as error:
        raise UserError(f'--image_size: {error}') from None


def _count(text):
    try:
        value = int(text)
    except ValueError:
        value = 0
    if value < 1:
        raise argparse.ArgumentTypeError(f'{text!r} is not a number of at least 1')
    return value


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
