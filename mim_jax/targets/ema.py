"""Features of an average of the student as targets."""

import dataclasses

from mim_jax.errors import UserError
from mim_jax.ranges import Depth
from mim_jax.targets.base import Target
from mim_jax.targets.features import network_tokens


@dataclasses.dataclass(frozen=True)
class EMA(Target):
    """Features of the average of the student's own parameters, on the student's whole images.

    layer: tokens after that many blocks; None: the encoder's output.
    """

    layer: Depth | None = None

    def check(self, encoder, inputs):
        if self.layer is not None and not 1 <= self.layer <= encoder.depth:
            raise UserError(
                f'config.objective.target.layer = {self.layer} is not among the blocks 1 to '
                f'{encoder.depth} of the encoder.'
            )

    @property
    def needs_ema(self) -> bool:
        return True

    def __call__(self, variables, images):
        return self._tokens(variables, images)

    def merged(self, variables, images, num_merged):
        return self._tokens(variables, images, num_merged=num_merged)

    def _tokens(self, variables, images, **options):
        return network_tokens(
            variables['ema']['encoder'],
            self.inputs.normalize(images),
            model=self.encoder,
            layer=self.layer,
            **options,
        )
