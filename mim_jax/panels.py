"""What there is to see of a batch: the panels that an objective's `pictures` is made of.

A sheet is a list of panels, drawn as columns beside the input; `mim_jax.visualize` draws them.
Panels are pytrees whose titles are static, so that a compiled function can return them. Each has
one value per image of the batch; patches lie on the student's grid.
"""

import flax.struct
import jax


@flax.struct.dataclass
class Image:
    """An image [B,H,W,C] in [0, 1]; with `mask` [B,N] only its hidden patches are shown, the others
    are those of the input.
    """

    values: jax.Array
    mask: jax.Array | None = None
    title: str = flax.struct.field(pytree_node=False, default='image')


@flax.struct.dataclass
class Mask:
    """Hidden patches [B,N] bool, True = hidden, in grey over `images` (None: the input)."""

    values: jax.Array
    images: jax.Array | None = None
    title: str | None = flax.struct.field(pytree_node=False, default=None)  # None: the share hidden


@flax.struct.dataclass
class HeatMap:
    """One number per patch, float [B,N], from dark (the image's least) to light (its most)."""

    values: jax.Array
    title: str = flax.struct.field(pytree_node=False, default='heat map')


@flax.struct.dataclass
class Groups:
    """Groups of patches [B,N] int32: patches of one number belong together; over `images` (None:
    the input).

    protected: [B] int32, the patch that a grouping lets join no other (None: there is none).
    """

    values: jax.Array
    protected: jax.Array | None = None
    title: str | None = flax.struct.field(pytree_node=False, default=None)  # None: their number
    images: jax.Array | None = None


@flax.struct.dataclass
class Tokens:
    """Tokens [B,N,D] as colours: their first three principal components over the batch."""

    values: jax.Array
    title: str = flax.struct.field(pytree_node=False, default='tokens (PCA)')


@flax.struct.dataclass
class Classes:
    """One class per pixel, int [B,H,W], each in a colour of its own over the input; 255, which is
    no class, is grey.
    """

    values: jax.Array
    title: str = flax.struct.field(pytree_node=False, default='classes')


Panel = Image | Mask | HeatMap | Groups | Tokens | Classes
Sheets = dict[str, list[Panel]]
