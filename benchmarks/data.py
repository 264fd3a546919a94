"""CPU time of the host's data path per image, beside Pillow, on one core.

  python benchmarks/data.py --photos=DIR [--size=224] [--repeats=3]

DIR holds image files (searched recursively; the first 200 are read into memory first). Both
sides decode the same crops of the same files and resize them with antialiased bicubic. Training
crops are random (scale 0.2 to 1, or 0.08 to 1), evaluation is the centre crop.
"""

import argparse
import functools
import io
import os
import platform
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mim_jax import data
from mim_jax.data import folder, views


def pillow_view(encoded, choose_box, *, size):
    image = Image.open(io.BytesIO(encoded)).convert('RGB')
    top, left, height, width = choose_box(height=image.height, width=image.width)
    image = image.crop((round(left), round(top), round(left + width), round(top + height)))
    return np.asarray(image.resize(size[::-1], Image.BICUBIC))


def our_view(encoded, choose_box, *, size):
    return views.view(
        {'image': encoded}, choose_box, size=size, channels=3, interpolation='bicubic'
    )[0]


def boxes(kind, size):
    if kind == 'centre':
        return lambda seed: functools.partial(views.centre_box, size=size, share=0.875)
    return lambda seed: functools.partial(
        views.random_box, np.random.default_rng(seed), scale=(kind, 1.0), ratio=(3 / 4, 4 / 3)
    )


def milliseconds(function, photos, choose, size):
    start = time.process_time()
    results = [function(photo, choose(i), size=size) for i, photo in enumerate(photos)]
    return 1e3 * (time.process_time() - start) / len(photos), results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', required=True)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--repeats', type=int, default=3)
    args = parser.parse_args()
    cv2.setNumThreads(0)
    size = (args.size, args.size)
    paths = sorted(p for p in Path(args.photos).rglob('*') if p.suffix.lower() in folder.SUFFIXES)
    photos = [p.read_bytes() for p in paths[:200]]

    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores; one is used')
    print(f'{len(photos)} photos to {size[0]}x{size[1]}, best of {args.repeats}\n')
    print('| view | ours, ms | Pillow, ms | times faster | mean difference | largest |')
    print('| --- | --- | --- | --- | --- | --- |')
    for name, kind in (('crop 0.2-1', 0.2), ('crop 0.08-1', 0.08), ('centre', 'centre')):
        choose = boxes(kind, size)
        best = [np.inf, np.inf]
        for _ in range(args.repeats):
            ours, ours_out = milliseconds(our_view, photos, choose, size)
            pillow, pillow_out = milliseconds(pillow_view, photos, choose, size)
            best = [min(best[0], ours), min(best[1], pillow)]
        difference = np.abs(np.stack(ours_out).astype(int) - np.stack(pillow_out))
        print(
            f'| {name} | {best[0]:.2f} | {best[1]:.2f} | {best[1] / best[0]:.2f} | '
            f'{difference.mean():.2f} | {difference.max()} |'
        )

    scenes = data.make_source(data.DataConfig(image_size=(48, 48)), split='train')
    best = np.inf
    for _ in range(args.repeats):
        start = time.process_time()
        for i in range(500):
            scenes[i]
        best = min(best, 1e3 * (time.process_time() - start) / 500)
    print(f'\nembedded scene of 48x48: {best:.2f} ms')


if __name__ == '__main__':
    main()
