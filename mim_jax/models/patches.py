"""Images as grids of patches, and back."""

import jax

from mim_jax.errors import UserError

# More than attention could take; tables for far more would fill the memory before anything is told.
MOST_PATCHES = 2**16


def patch_grid(image_size, patch_size) -> tuple[int, int]:
    """Number of patches (rows, columns) of an image of (height, width) pixels.

    Raises UserError where the image is not a whole number of patches, or of more than MOST_PATCHES.
    """
    (height, width), (p, q) = image_size, patch_size
    if height % p or width % q or height < p or width < q:
        raise UserError(
            f'an image of {height}x{width} pixels is not a whole number of {p}x{q} patches: '
            'change the image size of the data or model.patch_size'
        )
    if (height // p) * (width // q) > MOST_PATCHES:
        raise UserError(
            f'an image of {height}x{width} pixels has {(height // p) * (width // q):,} patches of '
            f'{p}x{q}, more than {MOST_PATCHES:,}: make the image smaller or the patches larger'
        )
    return height // p, width // q


def patchify(images, *, patch_size):
    """Images [B,H,W,C] as patches [B,N,p*q*C], each flattened as (row, column, channel)."""
    batch, height, width, channels = images.shape
    p, q = patch_size
    h, w = patch_grid((height, width), patch_size)
    patches = images.reshape(batch, h, p, w, q, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, h * w, p * q * channels)


def unpatchify(patches, *, grid, patch_size):
    """The inverse of `patchify`: patches [B,N,p*q*C] on `grid` (h,w) as images [B,H,W,C]."""
    (h, w), (p, q) = grid, patch_size
    batch, _, size = patches.shape
    channels = size // (p * q)
    images = patches.reshape(batch, h, w, p, q, channels).transpose(0, 1, 3, 2, 4, 5)
    return images.reshape(batch, h * p, w * q, channels)


def size_of_cells(image_size, *, patch_size, gap):
    """(height, width) of images whose cells are `gap` pixels larger both ways than the patches of
    images of `image_size`.
    """
    grid = patch_grid(image_size, patch_size)
    return tuple(size + gap * patches for size, patches in zip(image_size, grid, strict=True))


def cut_at_random(keys, images, *, patch_size, gap):
    """As `cut_from_cells`, with corners drawn from 0 to gap - 1, from one key per image [B]."""
    (p, q), (height, width) = patch_size, images.shape[1:3]
    shape = (height // (p + gap) * (width // (q + gap)), 2)
    corners = jax.vmap(lambda key: jax.random.randint(key, shape, 0, gap))(keys)
    return cut_from_cells(images, corners, patch_size=patch_size, gap=gap)


def cut_from_cells(images, corners, *, patch_size, gap):
    """Images [B,h*p,w*q,C] put together of one patch (p,q) out of each cell of (p+gap,q+gap) pixels
    of images [B,h*(p+gap),w*(q+gap),C].

    corners: [B,h*w,2] int32, where in its cell a patch begins, from 0 to gap.
    """
    (p, q), channels = patch_size, images.shape[-1]
    cell = (p + gap, q + gap)
    cells = patchify(images, patch_size=cell).reshape(*corners.shape[:2], *cell, channels)

    def cut(cell, corner):
        return jax.lax.dynamic_slice(cell, (corner[0], corner[1], 0), (p, q, channels))

    patches = jax.vmap(jax.vmap(cut))(cells, corners).reshape(*corners.shape[:2], -1)
    grid = patch_grid(images.shape[1:3], cell)
    return unpatchify(patches, grid=grid, patch_size=patch_size)
