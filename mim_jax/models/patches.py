"""Images as grids of patches, and back."""

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
