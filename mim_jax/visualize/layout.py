"""Panels to a sheet: rows that stay legible on a page, titles, a heading, and what colours mean."""

import dataclasses
import functools
import os

import numpy as np
from PIL import Image, ImageDraw, ImageFont

# Every panel is enlarged, by a whole factor, until its shorter side has about this many pixels.
PANEL_SIDE = 224
# Columns that would be wider than this together, in pixels, are broken into several rows: where a
# page shows a sheet smaller than it is, its words are too small to read.
FULL_WIDTH = 1000
# Sizes of letters, and the side of a legend's sample of colour, in pixels.
HEADING, TITLE, LEGEND = 20, 17, 15
SAMPLE = 22


@dataclasses.dataclass(frozen=True)
class Key:
    """What a colour means: words, and a `sample` of it, float [h,w,3] in [0, 1], if any."""

    text: str
    sample: np.ndarray | None = None


def enlarge(images: np.ndarray, *, scale: int) -> np.ndarray:
    """[B,H,W,C] to [B,sH,sW,C], every pixel a square."""
    return np.asarray(images).repeat(scale, axis=1).repeat(scale, axis=2)


def panel_scale(height: int, width: int) -> int:
    """By how much panels of this size are enlarged to be readable."""
    return max(1, round(PANEL_SIDE / min(height, width)))


def sheet(
    columns: list[np.ndarray],
    *,
    titles: list[str],
    heading: str | None = None,
    legend: list[Key] | tuple[Key, ...] = (),
) -> np.ndarray:
    """A uint8 [H',W',3] picture with one row per image and titled columns; where these are too many
    for FULL_WIDTH, an image has several rows under titles of their own.

    columns: float [B,H,W,3] in [0, 1], all of one B, of sizes that are whole multiples of the
    smallest; titles: one short text per column; heading: a line above; legend: what stands below.
    """
    height, width = np.min([column.shape[1:3] for column in columns], axis=0)
    scale = max([panel_scale(height, width)] + [c.shape[1] // height for c in columns])
    height, width = height * scale, width * scale
    columns = [enlarge(c, scale=height // c.shape[1]) for c in columns]
    gap = max(4, width // 40)
    rows = _rows(len(columns), most=max(2, (FULL_WIDTH - gap) // (width + gap)))
    lefts = [gap + place * (width + gap) for place in range(len(rows[0]))]
    full = lefts[-1] + width + gap
    headers = []
    for row in rows:
        placed = [(left + width // 2, titles[c]) for left, c in zip(lefts, row, strict=False)]
        headers.append(_words(placed, size=TITLE, width=width, full=full, anchor='m'))
    parts = []
    if heading:
        parts.append(_words([(gap, heading)], size=HEADING, width=full - 2 * gap, full=full))
    for image in range(len(columns[0])):
        for header, row in zip(headers, rows, strict=True):
            if image == 0 or len(rows) > 1:
                parts.append(header)
            part = np.full((height + gap, full, 3), 255, np.uint8)
            for left, column in zip(lefts, row, strict=False):
                part[:height, left : left + width] = np.round(columns[column][image] * 255)
            parts.append(part)
    return np.concatenate([*parts, *_legend(legend, gap=gap, full=full)])


def _rows(count: int, *, most: int) -> list[range]:
    """As few rows of up to `most` columns as possible, of about equal length, the first longest."""
    length = -(-count // -(-count // most))
    return [range(start, min(start + length, count)) for start in range(0, count, length)]


def _legend(legend, *, gap, full):
    """Strips of samples and their words, several beside each other where there is room."""
    rows, end = [], full
    for key in legend:
        room = SAMPLE + gap if key.sample is not None else 0
        length = room + round(_font(LEGEND).getlength(key.text)) + 4 * gap
        if end + length > full:
            rows.append([])
            end = gap
        rows[-1].append((end, end + room, key))
        end += length
    for row in rows:
        placed = [(start, key.text) for _, start, key in row]
        # One that is alone in its row may be longer than that.
        width = full - placed[0][0] - gap if len(row) == 1 else full
        strip = _words(placed, size=LEGEND, width=width, full=full, least=SAMPLE)
        for left, _, key in row:
            if key.sample is not None:
                sample = Image.fromarray(np.uint8(np.round(key.sample * 255)))
                sample = np.asarray(sample.resize((SAMPLE, SAMPLE), Image.Resampling.NEAREST))
                strip[2 : 2 + SAMPLE, left : left + SAMPLE] = sample
        yield strip


def _words(placed, *, size, width, full, anchor='l', least=0):
    """A white uint8 strip [h,full,3] of texts at (x, text), each broken to `width`, the last lines
    at one height; `anchor` says what of a text is at x: its left ('l') or its middle ('m').
    """
    texts = [(x, _broken(text, size=size, width=width)) for x, text in placed]
    lines = max(text.count('\n') + 1 for _, text in texts)
    height = max(round(1.25 * size * lines), least) + size // 2
    image = Image.new('RGB', (full, height), 'white')
    draw = ImageDraw.Draw(image)
    align = 'center' if anchor == 'm' else 'left'
    for x, text in texts:
        place = (x, height - size // 4)
        draw.multiline_text(
            place, text, fill='#222222', font=_font(size), anchor=f'{anchor}d', align=align
        )
    return np.array(image)


def _broken(text, *, size, width):
    """A text with line breaks between words, so that each line fits `width` pixels if it can."""
    lines = ['']
    for word in text.split():
        longer = f'{lines[-1]} {word}'.lstrip()
        if lines[-1] and _font(size).getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return '\n'.join(lines)


@functools.lru_cache
def _font(size):
    import matplotlib

    name = os.path.join(matplotlib.get_data_path(), 'fonts', 'ttf', 'DejaVuSans.ttf')
    return ImageFont.truetype(name, size)
