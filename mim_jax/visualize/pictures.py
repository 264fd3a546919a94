"""Pictures as pure functions on NumPy arrays: masks, reconstructions, groups, features.

Images are float [B,H,W,C] in [0, 1] with 3 channels or 1; everything drawn is float [B,H,W,3] in
[0, 1], or [B,sH,sW,3] where lines are drawn at a larger scale. Patches lie on a grid (h, w) that
divides H and W.
"""

import colorsys

import numpy as np

from mim_jax import panels

HIDDEN = (0.52, 0.53, 0.55)
BORDER = (1.0, 1.0, 1.0)

# How much a group's colour covers the photo below it.
OPACITY = 0.72

# Every panel is enlarged, by a whole factor, until its shorter side has about this many pixels.
PANEL_SIDE = 224


def to_rgb(images: np.ndarray) -> np.ndarray:
    """uint8 or float images [B,H,W,1 or 3] as float32 [B,H,W,3] in [0, 1]."""
    images = np.asarray(images)
    images = images.astype(np.float32) / (255 if images.dtype == np.uint8 else 1)
    return np.clip(np.broadcast_to(images, (*images.shape[:-1], 3)), 0, 1)


def to_pixels(values: np.ndarray, *, grid: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """One value per patch [B,N,…] as one per pixel [B,H,W,…].

    Raises ValueError where the grid does not divide the size (H, W).
    """
    values = np.asarray(values)
    if size[0] % grid[0] or size[1] % grid[1] or values.shape[1] != grid[0] * grid[1]:
        raise ValueError(f'{values.shape[1]} patches, a grid {grid} and an image {size} do not fit')
    values = values.reshape(len(values), *grid, *values.shape[2:])
    return values.repeat(size[0] // grid[0], axis=1).repeat(size[1] // grid[1], axis=2)


def hide(images: np.ndarray, mask: np.ndarray, *, grid: tuple[int, int]) -> np.ndarray:
    """The images with hidden patches (mask [B,N] True) in the colour HIDDEN."""
    images = to_rgb(images)
    hidden = to_pixels(mask, grid=grid, size=images.shape[1:3])[..., None]
    return np.where(hidden, np.float32(HIDDEN), images)


def composite(
    images: np.ndarray, reconstruction: np.ndarray, mask: np.ndarray, *, grid: tuple[int, int]
) -> np.ndarray:
    """The photo where it was visible, the reconstruction [B,H,W,C] where it was hidden."""
    images = to_rgb(images)
    hidden = to_pixels(mask, grid=grid, size=images.shape[1:3])[..., None]
    return np.where(hidden, to_rgb(reconstruction), images)


def paint_groups(
    images: np.ndarray, groups: np.ndarray, *, grid: tuple[int, int], scale: int = 1
) -> np.ndarray:
    """Groups [B,N] as coloured regions over the images enlarged `scale` times.

    Every group of several patches has one colour, its mean colour in the photo tinted with a hue of
    its own, and a border; a patch that no other has joined stays the plain photo.
    """
    images = to_rgb(images)
    pixels = enlarge(images, scale=scale)
    size = pixels.shape[1:3]
    patches = _patch_means(images, grid=grid)
    colors = np.stack([_group_colors(c, g) for c, g in zip(patches, groups, strict=True)])
    merged = np.stack([np.bincount(g)[g] > 1 for g in np.asarray(groups)])
    painted = np.where(
        to_pixels(merged, grid=grid, size=size)[..., None],
        OPACITY * to_pixels(colors, grid=grid, size=size) + (1 - OPACITY) * pixels,
        pixels,
    )
    thickness = max(1, round(min(size) / 160))
    ids = to_pixels(groups, grid=grid, size=size)
    border = _borders(ids, to_pixels(merged, grid=grid, size=size), thickness=thickness)
    return np.where(border[..., None], np.float32(BORDER), painted)


def paint_classes(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Classes int [B,H,W] in colours over the images of that size; 255, no class, in HIDDEN.

    Class k has the same colour everywhere: hues a golden section apart, three lightnesses in turn.
    """
    table = np.tile(np.float32(HIDDEN), (256, 1))
    for k in range(255):
        lightness = (0.5, 0.35, 0.65)[k % 3]
        table[k] = colorsys.hls_to_rgb((0.6 + k * 0.6180339887) % 1, lightness, 0.8)
    return OPACITY * table[np.asarray(classes)] + (1 - OPACITY) * to_rgb(images)


def pca_colors(tokens: np.ndarray, *, like: np.ndarray | None = None) -> np.ndarray:
    """Tokens [B,N,D] as colours float32 [B,N,3]: their first three principal components.

    The components are those of all tokens of `like` [...,D] together (None: of `tokens`), so that
    equal colours mean alike tokens across the images too, and across calls with one `like`. Each is
    stretched to [0, 1] between its 1st and 99th percentile over `like`, and turned so that its
    largest loading is positive.
    """
    tokens = np.asarray(tokens, np.float64)
    like = tokens if like is None else np.asarray(like, np.float64)
    like = like.reshape(-1, like.shape[-1])
    centre = like.mean(axis=0)
    _, axes = np.linalg.eigh((like - centre).T @ (like - centre))
    axes = axes[:, ::-1][:, :3]
    axes = axes * np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(axes.shape[1])])
    low, high = np.percentile((like - centre) @ axes, (1, 99), axis=0)
    components = (tokens - centre) @ axes
    colors = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.pad(colors, ((0, 0), (0, 0), (0, 3 - colors.shape[-1]))).astype(np.float32)


def resized(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images [B,H,W,3] at `size` (height, width), as they are where they have it."""
    if images.shape[1:3] == tuple(size):
        return images
    import cv2

    return np.stack([cv2.resize(x, size[::-1], interpolation=cv2.INTER_AREA) for x in images])


def on_canvas(images: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Images [B,H,W,3] in the middle of white ones of `size` (height, width), at least as large."""
    spare = [whole - own for whole, own in zip(size, images.shape[1:3], strict=True)]
    around = [(extra // 2, extra - extra // 2) for extra in spare]
    return np.pad(images, ((0, 0), *around, (0, 0)), constant_values=1)


def enlarge(images: np.ndarray, *, scale: int) -> np.ndarray:
    """[B,H,W,C] to [B,sH,sW,C], every pixel a square."""
    return np.asarray(images).repeat(scale, axis=1).repeat(scale, axis=2)


def panel_scale(height: int, width: int) -> int:
    """By how much panels of this size are enlarged to be readable."""
    return max(1, round(PANEL_SIDE / min(height, width)))


def _patch_means(images: np.ndarray, *, grid: tuple[int, int]) -> np.ndarray:
    count, height, width, channels = images.shape
    h, w = grid
    shape = (count, h, height // h, w, width // w, channels)
    return images.reshape(shape).mean(axis=(2, 4)).reshape(count, h * w, channels)


def _group_colors(patches: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Colour [N,3] of each patch's group, from the patches' mean colours [N,3] and groups [N]."""
    groups = np.asarray(groups)
    colors = np.zeros_like(patches)
    for group in np.unique(groups):
        members = groups == group
        mean = patches[members].mean(axis=0)
        # The golden ratio spreads the hues; the first member's place keeps a group's hue while the
        # group grows from one schedule to the next.
        hue = (np.flatnonzero(members)[0] * 0.6180339887) % 1
        lightness = np.clip(mean @ (0.299, 0.587, 0.114), 0.3, 0.75)
        tint = colorsys.hls_to_rgb(hue, lightness, 0.75)
        colors[members] = 0.4 * mean + 0.6 * np.asarray(tint)
    return colors


def _borders(ids: np.ndarray, merged: np.ndarray, *, thickness: int) -> np.ndarray:
    """Pixels [B,H,W] within `thickness` of a border between groups, one of them merged."""
    border = np.zeros(ids.shape, bool)
    for axis in (1, 2):
        low = [slice(None)] * 3
        high = [slice(None)] * 3
        low[axis], high[axis] = slice(None, -1), slice(1, None)
        low, high = tuple(low), tuple(high)
        edge = (ids[low] != ids[high]) & (merged[low] | merged[high])
        before, after = thickness // 2, thickness - thickness // 2
        for shift in range(-before, after):
            part = np.zeros(ids.shape, bool)
            part[low] = edge
            border |= np.roll(part, shift, axis=axis)
    return border


def sheet(columns: list[np.ndarray], *, titles: list[str]) -> np.ndarray:
    """A uint8 [H',W',3] picture with one row per image and titled columns.

    columns: float [B,H,W,3] in [0, 1], all of one B, of sizes that are whole multiples of the
    smallest; titles: one short text per column.
    """
    height, width = np.min([column.shape[1:3] for column in columns], axis=0)
    scale = max([panel_scale(height, width)] + [c.shape[1] // height for c in columns])
    height, width = height * scale, width * scale
    columns = [enlarge(c, scale=height // c.shape[1]) for c in columns]
    gap = max(4, width // 40)
    header = _header(titles, width=width, gap=gap)
    rows, count = len(columns[0]), len(columns)
    picture = np.ones((rows * (height + gap) + gap, count * (width + gap) + gap, 3), np.float32)
    for row in range(rows):
        for column in range(count):
            top, left = gap + row * (height + gap), gap + column * (width + gap)
            picture[top : top + height, left : left + width] = columns[column][row]
    picture = np.round(picture * 255).astype(np.uint8)
    return np.concatenate([header, picture])


def _header(titles: list[str], *, width: int, gap: int) -> np.ndarray:
    """The titles in one white uint8 strip, each centred over its column and wrapped to it."""
    import textwrap

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    dpi, points = 100, 10.5
    character = 0.62 * points * dpi / 72  # mean width of a letter of the default font
    texts = [textwrap.fill(title, max(6, int(width / character))) for title in titles]
    lines = max(text.count('\n') + 1 for text in texts)
    height = round((1.35 * lines + 0.5) * points * dpi / 72)
    full = len(titles) * (width + gap) + gap
    figure = Figure(figsize=(full / dpi, height / dpi), dpi=dpi, facecolor='white')
    canvas = FigureCanvasAgg(figure)
    for column, text in enumerate(texts):
        x = (gap + column * (width + gap) + width / 2) / full
        figure.text(x, 0.0, text, ha='center', va='bottom', size=points, color='#222222')
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[:height, :full, :3].copy()


def heat_colors(values: np.ndarray) -> np.ndarray:
    """Numbers [B,N] as colours float32 [B,N,3], each image from its least (dark) to its most
    (light); an image of equal numbers is in the middle.
    """
    import matplotlib

    values = np.asarray(values, np.float32)
    low = values.min(axis=1, keepdims=True)
    spread = values.max(axis=1, keepdims=True) - low
    scaled = np.where(spread > 0, (values - low) / np.where(spread > 0, spread, 1), 0.5)
    return matplotlib.colormaps['magma'](scaled)[..., :3].astype(np.float32)


def render(
    sheets: dict[str, list[panels.Panel]], images: np.ndarray, *, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Draws what an objective's `pictures()` offers as named uint8 sheets, one image per row: the
    input [B,H,W,C], uint8 or in [0, 1], and the panels of the sheet beside it.

    Raises ValueError for what is no panel.
    """
    photo = to_rgb(images)
    drawn = {}
    for name, shown in sheets.items():
        columns = [('input', photo)]
        columns += [_column(panel, photo, grid=grid, sheet=name) for panel in shown]
        titles, values = zip(*columns, strict=True)
        drawn[name] = sheet(list(values), titles=list(titles))
    return drawn


def _column(
    panel: panels.Panel, photo: np.ndarray, *, grid: tuple[int, int], sheet: str
) -> tuple[str, np.ndarray]:
    """Title and image float [B,H,W,3] of one panel."""
    size = photo.shape[1:3]
    match panel:
        case panels.Image(values, mask):
            image = resized(to_rgb(values), size)
            if mask is not None:
                image = composite(photo, image, mask, grid=grid)
        case panels.Mask(values, below):
            below = photo if below is None else resized(to_rgb(below), size)
            image = hide(below, values, grid=grid)
            return panel.title or f'{np.mean(values):.0%} hidden', image
        case panels.HeatMap(values):
            image = to_pixels(heat_colors(values), grid=grid, size=size)
        case panels.Groups(values):
            image = paint_groups(photo, values, grid=grid, scale=panel_scale(*size))
            number = np.mean([len(np.unique(one)) for one in values])
            return panel.title or f'{number:.0f} groups', image
        case panels.Tokens(values):
            image = to_pixels(pca_colors(values), grid=grid, size=size)
        case panels.Classes(values):
            image = paint_classes(photo, values)
        case _:
            raise ValueError(
                f'pictures() gives {type(panel).__name__} in the sheet {sheet!r}, which is none of '
                'the panels of mim_jax.panels.'
            )
    return panel.title, image
