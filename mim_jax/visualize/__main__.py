"""Draws what a run has learnt (--workdir=DIR) or what a teacher sees in photos (--teacher=PATH).

With --workdir writes PNG sheets of masks, reconstructions, morphing groups and features: of images
of the run's evaluation split into WORKDIR/pictures, of files given by --images into
WORKDIR/pictures/images. With --teacher writes one sheet of the photos given by --images: the
teacher's tokens, their groups at several schedules and the morphed target.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

import numpy as np

from mim_jax import data, storage, teachers
from mim_jax.data import folder
from mim_jax.errors import UserError
from mim_jax.visualize import draw, write
from mim_jax.visualize.draw import write_png

MAX_IMAGES = 64


class Files:
    """A data source of image files without labels."""

    fields = data.image_fields()

    def __init__(self, paths: list[Path]):
        self._paths = paths

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, index: int) -> dict:
        return {'image': folder.read_file(self._paths[index])}

    def describe(self, index: int) -> str:
        return str(self._paths[index])


def find_images(names: list[str]) -> list[Path]:
    """The files named, and those below the folders named, in order.

    Raises UserError for a name that is not there, or a folder without images.
    """
    paths = []
    for name in names:
        path = Path(name)
        if not path.is_file() and not path.is_dir():
            raise UserError(f'--images={name}: there is no such file or folder.')
        found = [path]
        if path.is_dir():
            images = (p for p in path.rglob('*') if p.suffix.lower() in folder.SUFFIXES)
            found = sorted(p for p in images if p.is_file())
        if not found:
            endings = ', '.join(folder.SUFFIXES)
            raise UserError(f'--images={name}: the folder holds no images ({endings}).')
        paths += found
    return paths


def load_batch(
    config: data.DataConfig, views: data.Views, *, names: list[str], num: int
) -> dict[str, np.ndarray]:
    """A batch of `num` items in `views`, evenly spaced over the files `names`, or over the run's
    evaluation split where there are none.

    Raises UserError where there is nothing to read, or loose files do not have what is viewed.
    """
    from mim_jax.evaluators import EvenlySpaced

    if names:
        source = Files(find_images(names))
        data.check_views(
            config,
            views,
            source.fields,
            data='a set of loose files (--images)',
            hint="leave out --images to draw the run's own data",
        )
        views = _of_any_size(views, share=config.eval_crop or 1.0)
        config = dataclasses.replace(config, max_corrupt_share=1.0)
    else:
        source = data.make_source(config, split=config.eval_split or config.split)
    source = EvenlySpaced(source, num)
    if not len(source):
        raise UserError('There are no images to draw: is the split empty?')
    config = dataclasses.replace(config, workers=0)
    (batch,) = data.eval_batches(source, config, views=views, batch_size=len(source))
    if not batch['valid'].any():
        raise UserError(f'None of the images can be read (the first: {source.describe(0)}).')
    return {name: value[batch['valid']] for name, value in batch.items()}


def _of_any_size(views, *, share):
    """The views of photos of any size and shape, whatever the run was fed with: `images` shows as
    much as fits."""
    changed = {}
    for name, view in views.items():
        crop = view.crop
        if name == 'images' or crop.mode == 'none':
            crop = dataclasses.replace(crop, mode='centre', share=share)
        changed[name] = dataclasses.replace(view, crop=crop)
    return changed


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog='python -m mim_jax.visualize',
        description=__doc__.split('\n\n')[0],
        allow_abbrev=False,
    )
    add = parser.add_argument
    add('--workdir', help='work directory of the run')
    add('--images', nargs='+', default=[], help='image files or folders of them')
    add('--num', type=int, default=8, help='how many images (default 8)')
    add('--step', type=int, help='with --workdir: checkpoint to draw (default: the newest)')
    add('--out', help='folder for the pictures (default: WORKDIR/pictures; runs/pictures)')
    teachers.add_flags(parser)
    add(
        '--image_size',
        type=teachers.size_flag,
        metavar='S or H,W',
        help="with --teacher: the photos' shorter side, or the size to which all are cropped, in "
        "pixels (default: the shorter side of the teacher's own images)",
    )
    arguments = parser.parse_args(argv)
    if bool(arguments.workdir) == bool(arguments.teacher):
        parser.error('give either --workdir or --teacher.')
    of_teachers = [n for n in ('mean', 'std', 'model', 'image_size') if getattr(arguments, n)]
    if arguments.workdir and of_teachers:
        parser.error(f'--{of_teachers[0]} needs --teacher: a run knows its own.')
    if arguments.teacher and arguments.step is not None:
        parser.error('--step needs --workdir.')
    if arguments.teacher and not arguments.images:
        parser.error('--teacher needs --images.')
    if not 1 <= arguments.num <= MAX_IMAGES:
        parser.error(f'--num={arguments.num}: give 1 to {MAX_IMAGES}.')
    return arguments


def main(argv: list[str] | None = None) -> list[Path]:
    """Runs the command line and returns the files written."""
    arguments = parse(argv)
    paths = draw_teacher(arguments) if arguments.teacher else draw_run(arguments)
    for path in paths:
        print(path)
    return paths


def draw_run(arguments: argparse.Namespace) -> list[Path]:
    """The sheets of a work directory."""
    from mim_jax.restoring import restore_run

    program, variables, step = restore_run(arguments.workdir, step=arguments.step)
    views = data.eval_views(program.run.data, program.views)
    batch = load_batch(program.run.data, views, names=arguments.images, num=arguments.num)
    sheets = draw(
        program.objective,
        variables,
        batch,
        views=views,
        step=step,
        seed=program.run.seed,
        mesh=program.mesh,
        run=storage.path(arguments.workdir).resolve().name,
    )
    out = storage.path(arguments.workdir) / 'pictures'
    if arguments.images:
        out = out / 'images'  # beside the run's own pictures of the same step
    return write(arguments.out or out, sheets, step=step)


def draw_teacher(arguments: argparse.Namespace) -> list[Path]:
    """The sheet of a teacher."""
    from mim_jax.evaluators import EvenlySpaced
    from mim_jax.visualize.teacher import read_photo, teacher_sheet

    loaded = teachers.from_flags(arguments)
    size = arguments.image_size
    if size is None:
        if loaded.image_size is None:
            raise UserError(
                f'--teacher={arguments.teacher} does not state the size of its images: give '
                "--image_size=S, the photos' shorter side in pixels"
            )
        size = (min(loaded.image_size),)
    patch, channels = loaded.teacher.model.patch_size, loaded.channels
    files = EvenlySpaced(find_images(arguments.images), arguments.num)
    photos = [
        read_photo(files[i], size=size, patch_size=patch, channels=channels)
        for i in range(len(files))
    ]
    path = Path(arguments.out or 'runs/pictures') / 'teacher.png'
    heading = f'teacher {Path(arguments.teacher).resolve().stem}'
    write_png(path, teacher_sheet(loaded, photos, heading=heading))
    return [path]


if __name__ == '__main__':
    try:
        main()
    except UserError as error:
        print(error, file=sys.stderr)
        sys.exit(2)
