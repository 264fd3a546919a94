"""Pictures as pure functions on NumPy arrays: masks, reconstructions, groups, features.

Images are float [B,H,W,C] in [0, 1] with 3 channels or 1; everything drawn is float [B,H,W,3] in
[0, 1], or [B,sH,sW,3] where lines are drawn at a larger scale. Patches lie on a grid (h, w) that
divides H and W.
"""

import numpy as np

from mim_jax import panels
from mim_jax.visualize.layout import Key, enlarge, panel_scale, sheet
from mim_jax.visualize.palette import distinct, of_components

HIDDEN = (0.52, 0.53, 0.55)
BORDER = (1.0, 1.0, 1.0)
PROTECTED = (0.0, 0.0, 0.0)

# How much the colour of a group or a class covers the photo below it.
OPACITY = 0.72
# Colours that groups get by their place, so that they keep them; more groups get others.
USUAL = 12
LUMINANCE = np.float32((0.299, 0.587, 0.114))


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
    images: np.ndarray,
    groups: np.ndarray,
    *,
    grid: tuple[int, int],
    scale: int = 1,
    protected: np.ndarray | None = None,
) -> np.ndarray:
    """Groups [B,N] as coloured regions over the images enlarged `scale` times.

    Every group of several patches has one colour over the photo in grey, and a border; a patch that
    no other has joined stays the plain photo. The patch `protected` [B] is framed.
    """
    images = to_rgb(images)
    pixels = enlarge(images, scale=scale)
    size = pixels.shape[1:3]
    colors = np.stack([_group_colors(one) for one in np.asarray(groups)])
    merged = np.stack([np.bincount(g)[g] > 1 for g in np.asarray(groups)])
    colors = to_pixels(colors, grid=grid, size=size)
    merged = to_pixels(merged, grid=grid, size=size)
    painted = np.where(merged[..., None], _tinted(pixels, colors), pixels)
    thickness = max(1, round(min(size) / 160))
    ids = to_pixels(groups, grid=grid, size=size)
    border = _borders(ids, merged, thickness=thickness)
    painted = np.where(border[..., None], np.float32(BORDER), painted)
    if protected is not None:
        height, width = size[0] // grid[0], size[1] // grid[1]
        for picture, patch in zip(painted, protected, strict=True):
            row, column = divmod(int(patch), grid[1])
            _frame(picture[row * height :, column * width :][:height, :width], thickness=thickness)
    return painted


def paint_classes(images: np.ndarray, classes: np.ndarray) -> np.ndarray:
    """Classes int [B,H,W] in colours over the images of that size in grey; 255, no class, in
    HIDDEN. Class k has the same colour everywhere.
    """
    return _tinted(to_rgb(images), class_colors()[np.asarray(classes)])


def class_colors() -> np.ndarray:
    """float32 [256,3]: the colours of all classes, and of none."""
    return np.concatenate([distinct(255), np.float32([HIDDEN])])


def _tinted(images: np.ndarray, colors: np.ndarray) -> np.ndarray:
    """Colours over images in grey: a photo's own would change what is told apart."""
    return OPACITY * colors + (1 - OPACITY) * (images @ LUMINANCE)[..., None]


def pca_colors(tokens: np.ndarray, *, like: np.ndarray | None = None) -> np.ndarray:
    """Tokens [B,N,D] as colours float32 [B,N,3]: their `principal_components`."""
    return of_components(principal_components(tokens, like=like))


def principal_components(tokens: np.ndarray, *, like: np.ndarray | None = None) -> np.ndarray:
    """The first three principal components [B,N,3] in [0, 1] of tokens [B,N,D].

    They are those of all tokens of `like` [...,D] together (None: of `tokens`), so that
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
    components = np.clip((components - low) / np.maximum(high - low, 1e-12), 0, 1)
    return np.pad(components, ((0, 0), (0, 0), (0, 3 - components.shape[-1])))


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


def _group_colors(groups: np.ndarray) -> np.ndarray:
    """Colour [N,3] of each patch's group in groups [N]; those of patches alone mean nothing."""
    _, first, counts = np.unique(groups, return_index=True, return_counts=True)
    # The first member's place: so a group mostly keeps its colour while it grows from one schedule
    # to the next.
    places = sorted(first[counts > 1])
    table = np.resize(distinct(255), (max(USUAL, len(places)), 3))
    free, colors = list(range(len(table))), np.zeros((len(groups), 3), np.float32)
    for place in places:
        number = place % USUAL if place % USUAL in free else free[0]
        free.remove(number)
        colors[groups == groups[place]] = table[number]
    return colors


def _frame(patch: np.ndarray, *, thickness: int) -> None:
    """Draws a frame that is seen on any ground, white around black, into a patch [h,w,3]."""
    for inset, color in ((0, BORDER), (thickness, PROTECTED)):
        inner = patch[inset : len(patch) - inset, inset : patch.shape[1] - inset]
        for axis in (0, 1):
            side = np.moveaxis(inner, axis, 0)
            side[:thickness] = side[-thickness:] = color


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
    sheets: dict[str, list[panels.Panel]],
    images: np.ndarray,
    *,
    grid: tuple[int, int],
    heading: str | None = None,
) -> dict[str, np.ndarray]:
    """Draws what an objective's `pictures()` offers as named uint8 sheets, one image per row: the
    input [B,H,W,C], uint8 or in [0, 1], and the panels of the sheet beside it.

    heading: what stands above each, before its name. Raises ValueError for what is no panel.
    """
    photo = to_rgb(images)
    drawn = {}
    for name, shown in sheets.items():
        titles, columns, legend = ['input'], [photo], {}
        for panel in shown:
            title, column, keys = _column(panel, photo, grid=grid, sheet=name)
            titles.append(title)
            columns.append(column)
            legend |= {key.text: key for key in keys}
        above = heading and f'{heading}: {name}'
        drawn[name] = sheet(columns, titles=titles, heading=above, legend=list(legend.values()))
    return drawn


def _column(
    panel: panels.Panel, photo: np.ndarray, *, grid: tuple[int, int], sheet: str
) -> tuple[str, np.ndarray, list[Key]]:
    """Title and image float [B,H,W,3] of one panel, and what its colours mean."""
    if not isinstance(panel, panels.Panel):
        raise ValueError(
            f'pictures() gives {type(panel).__name__} in the sheet {sheet!r}, which is none of '
            'the panels of mim_jax.panels.'
        )
    size, title, keys = photo.shape[1:3], panel.title, []
    match panel:
        case panels.Image(values, mask):
            image = resized(to_rgb(values), size)
            if mask is not None:
                image = composite(photo, image, mask, grid=grid)
        case panels.Mask(values, below):
            below = photo if below is None else resized(to_rgb(below), size)
            image = hide(below, values, grid=grid)
            title, keys = title or f'{np.mean(values):.0%} hidden', [Key('hidden', _plain(HIDDEN))]
        case panels.HeatMap(values):
            image = to_pixels(heat_colors(values), grid=grid, size=size)
            keys = [Key('from least to most, of each image by itself', _heat_sample())]
        case panels.Groups(values, protected, _, below):
            below = photo if below is None else resized(to_rgb(below), size)
            options = {'grid': grid, 'scale': panel_scale(*size), 'protected': protected}
            image = paint_groups(below, values, **options)
            number = np.mean([len(np.unique(one)) for one in values])
            title, keys = title or f'{number:.0f} groups', group_keys(protected is not None)
        case panels.Tokens(values):
            image = to_pixels(pca_colors(values), grid=grid, size=size)
            keys = [TOKENS_KEY]
        case panels.Classes(values):
            image, keys = paint_classes(photo, values), class_keys(values)
    return title, image, keys


TOKENS_KEY = Key(
    'like colours: alike tokens, in all images of this sheet (their first three principal '
    'components as lightness, blue to yellow, green to red)'
)


def group_keys(protected: bool) -> list[Key]:
    """What is seen of groups, and of a patch that joins none."""
    tile = np.tile(distinct(1)[0], (11, 11, 1))
    framed = np.ones((11, 11, 3), np.float32) * 0.8
    _frame(framed, thickness=1)
    keys = [
        Key('one colour in an image: one group, bordered in white', tile),
        Key('plain photo: a patch that no other has joined'),
    ]
    why = (
        'framed: the first token, which never joins a group (morphing.grouping.protect_first), as '
        "in DTM's code, where a class token once stood there"
    )
    return keys + [Key(why, framed)] * protected


def class_keys(classes: np.ndarray) -> list[Key]:
    """The classes that are there, by number."""
    colors = class_colors()
    present = np.unique(classes)
    return [Key('no class' if k == 255 else f'class {k}', _plain(colors[k])) for k in present]


def _plain(color: np.ndarray | tuple[float, ...]) -> np.ndarray:
    return np.tile(np.float32(color), (1, 1, 1))


def _heat_sample() -> np.ndarray:
    return heat_colors(np.arange(22.0)[None])
