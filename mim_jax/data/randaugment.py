"""RandAugment on the host (Cubuk et al., 2020), with the operations and strengths of timm."""

import dataclasses
from collections.abc import Callable
from typing import Annotated, Any, Literal

import numpy as np

from mim_jax.config import context
from mim_jax.data import operations
from mim_jax.errors import UserError
from mim_jax.ranges import NotNegative, Range, Share

TOP = 10.0  # the highest magnitude


def _signed(rng, value):
    """Negated with probability 0.5."""
    return -value if rng.random() < 0.5 else value


# From a magnitude's share of TOP, and a generator for the sign, to an operation's argument.
ARGUMENTS: dict[str, Callable[[float, np.random.Generator], Any]] = {
    'none': lambda share, rng: None,
    'degrees': lambda share, rng: _signed(rng, share * 30.0),
    'shear': lambda share, rng: _signed(rng, share * 0.3),
    'translation': lambda share, rng: _signed(rng, share * 0.45),
    'addend': lambda share, rng: int(share * 110),
    # Where a higher magnitude is to change more: away from the picture, to either side.
    'factor_increasing': lambda share, rng: max(0.1, 1.0 + _signed(rng, share * 0.9)),
    'bits_increasing': lambda share, rng: 4 - int(share * 4),
    'threshold_increasing': lambda share, rng: 256 - int(share * 256),
    # As in the paper's own code: from one end to the other, some changes least in the middle.
    'factor': lambda share, rng: share * 1.8 + 0.1,
    'bits': lambda share, rng: int(share * 4),
    'threshold': lambda share, rng: int(share * 256),
}

# Operation -> what its argument is; those of INCREASING have a second form.
OPERATIONS = {
    operations.auto_contrast: 'none',
    operations.equalize: 'none',
    operations.invert: 'none',
    operations.rotate: 'degrees',
    operations.posterize: 'bits',
    operations.solarize: 'threshold',
    operations.solarize_add: 'addend',
    operations.color: 'factor',
    operations.contrast: 'factor',
    operations.brightness: 'factor',
    operations.sharpness: 'factor',
    operations.shear_x: 'shear',
    operations.shear_y: 'shear',
    operations.translate_x: 'translation',
    operations.translate_y: 'translation',
}
INCREASING = ('bits', 'threshold', 'factor')


@dataclasses.dataclass(frozen=True)
class RandAugment:
    """Config section `data.randaugment`, and the host transform (rng, picture) -> picture itself.

    Of 15 operations `num_ops` are drawn, each of all of them, and applied one after the other to
    the picture of the view's size. timm's 'rand-m9-n2-mstd0.5-inc1' is num_ops=2 and the other
    defaults.

    num_ops: so many operations; 0: none of this.
    magnitude: mean strength, 0 to 10.
    magnitude_std: of the normal noise on it, drawn for each operation; the sum is cut to [0, 10].
    increasing: a higher magnitude always changes more (posterise, solarise, colour, contrast,
      brightness, sharpness); False: the paper's scales, which do not.
    probability: with which an operation that was drawn happens.
    interpolation: of what moves pixels; 'random': one of the two for each operation (timm's, where
      its crops draw theirs).
    fill: levels of what comes in from outside, one per channel; `DataConfig.view` gives the mean.
    """

    num_ops: Annotated[int, Range(0, 1000)] = 0
    magnitude: Annotated[float, Range(0, TOP)] = 9.0
    magnitude_std: NotNegative = 0.5
    increasing: bool = True
    probability: Share = 0.5
    interpolation: Literal['bicubic', 'bilinear', 'random'] = 'bicubic'
    fill: tuple[int, ...] | None = context()

    def __call__(self, rng, picture):
        """The picture with its image changed.

        Raises:
          UserError: it has maps, which would not follow.
        """
        if picture.maps:
            raise UserError(no_maps(picture.maps))
        image = picture.image
        for operation, argument, where in self.drawn(rng):
            image = operation(image, argument, where)
        return dataclasses.replace(picture, image=image)

    def drawn(self, rng):
        """What happens to one picture: a list of (operation, its argument, `Resampling`)."""
        found = []
        for place in rng.integers(len(OPERATIONS), size=self.num_ops):
            operation, kind = list(OPERATIONS.items())[place]
            if self.increasing and kind in INCREASING:
                kind += '_increasing'
            # All is drawn, whatever happens of it: the draws of one operation move no other's.
            happens = rng.random() < self.probability
            magnitude = rng.normal(self.magnitude, self.magnitude_std)
            argument = ARGUMENTS[kind](min(max(magnitude, 0.0), TOP) / TOP, rng)
            chosen = list(operations.FILTERS)[rng.integers(len(operations.FILTERS))]
            if self.interpolation != 'random':
                chosen = self.interpolation
            if happens:
                found.append((operation, argument, operations.Resampling(chosen, self.fill)))
        return found


def no_maps(names):
    """The sentence for a view whose maps (or boxes) would have to follow."""
    return (
        f'config.data.randaugment turns, shears and moves the image, and {", ".join(names)} of its '
        f'view would not follow: set config.data.randaugment.num_ops to 0'
    )
