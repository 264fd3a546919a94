"""CPU time of the host's data path per image, beside Pillow, on one core.

  python benchmarks/data.py --photos=DIR [--size=224] [--repeats=3] [--shorter_side=256] [--rate=N]

DIR holds image files (searched recursively; the first 200 are read into memory first). Both
sides decode the same crops of the same files and resize them with antialiased bicubic. Training
crops are random (scale 0.2 to 1, or 0.08 to 1), evaluation is the centre crop. With --shorter_side
the photos are first stored as `python -m mim_jax.data.pack` would. --rate is what a device's step
takes, in images per second.
"""

import argparse
import io
import os
import platform
import time
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from mim_jax import data
from mim_jax.data import crops, folder, pack, picture, resample

CROPS = {
    'crop 0.2-1': data.Crop(scale=(0.2, 1.0)),
    'crop 0.08-1': data.Crop(scale=(0.08, 1.0)),
    'centre': data.Crop(mode='centre', share=0.875),
}


def by_pillow(encoded, view, rng):
    image = Image.open(io.BytesIO(encoded)).convert('RGB')
    size = view.image_size
    window = crops.choose(view.crop, rng, height=image.height, width=image.width, size=size)
    top, left, height, width = window.box
    image = image.crop((left, top, left + width, top + height))
    return np.asarray(image.resize(size[::-1], Image.BICUBIC))


def by_us(encoded, view, rng):
    return picture.show(picture.Item({'image': encoded}, channels=3), view, rng).image


def milliseconds(function, photos, view):
    start = time.process_time()
    results = [
        function(photo, view, np.random.default_rng(seed)) for seed, photo in enumerate(photos)
    ]
    return 1e3 * (time.process_time() - start) / len(photos), results


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--photos', required=True)
    parser.add_argument('--size', type=int, default=224)
    parser.add_argument('--repeats', type=int, default=3)
    parser.add_argument('--shorter_side', type=int)
    parser.add_argument('--quality', type=int, default=90)
    parser.add_argument('--rate', type=float, default=1449, help='images/s of a device')
    args = parser.parse_args()
    cv2.setNumThreads(0)
    size = (args.size, args.size)
    paths = sorted(p for p in Path(args.photos).rglob('*') if p.suffix.lower() in folder.SUFFIXES)
    photos = [
        pack.as_stored(p.read_bytes(), shorter_side=args.shorter_side, quality=args.quality)
        for p in paths[:200]
    ]

    print(f'{platform.processor() or platform.machine()}, {os.cpu_count()} cores; one is used')
    stored = f' stored at {args.shorter_side}' if args.shorter_side else ''
    kilobytes = sum(map(len, photos)) / len(photos) / 1e3
    print(f'{len(photos)} photos{stored} ({kilobytes:.0f} kB) to {size[0]}x{size[1]}, best of')
    print(f'{args.repeats}; resized by {"vectors" if resample.vectorized else "matrices"}\n')
    cores = f'cores for {args.rate:,.0f} images/s'
    print(f'| view | ours, ms | images/s | {cores} | Pillow, ms | mean difference | largest |')
    print('| --- | --- | --- | --- | --- | --- | --- |')
    for name, crop in CROPS.items():
        view = data.View(crop=crop, image_size=size)
        best = [np.inf, np.inf]
        for _ in range(args.repeats):
            ours, ours_out = milliseconds(by_us, photos, view)
            pillow, pillow_out = milliseconds(by_pillow, photos, view)
            best = [min(best[0], ours), min(best[1], pillow)]
        difference = np.abs(np.stack(ours_out).astype(int) - np.stack(pillow_out))
        print(
            f'| {name} | {best[0]:.2f} | {1e3 / best[0]:.0f} | {args.rate * best[0] / 1e3:.1f} | '
            f'{best[1]:.2f} | {difference.mean():.2f} | {difference.max()} |'
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
