"""The contract of an objective: what trainer, evaluators and pictures ask of a method."""

import dataclasses
from typing import Any

import jax

from mim_jax import parameter_rules
from mim_jax.clock import Clock
from mim_jax.config import context
from mim_jax.data import DataConfig, View
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.losses import Weighted
from mim_jax.models.patches import patch_grid
from mim_jax.models.vit import Encoded, ViT
from mim_jax.panels import Sheets

Variables = dict[str, Any]
Batch = dict[str, jax.Array]


@dataclasses.dataclass(frozen=True)
class Objective:
    """A method. Its dataclass fields are its config section; `bind` adds the encoder, the inputs
    and the run's clock.

    All functions are pure and can be jitted. `variables` holds collections: `params` (trained) and,
    where the method has them, `teacher` (frozen), `ema` (average of `params`), `state`.
    """

    encoder: ViT = context()
    inputs: Inputs = context()
    clock: Clock | None = context()

    # Fields of the model that must be True.
    needs = ()

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> 'Objective':
        """This objective for an encoder, inputs and a run; raises UserError where they do not fit.

        Without a clock (to look at a network outside of a run) nothing that depends on how far the
        run is can be asked.
        """
        for field in self.needs:
            if not getattr(encoder, field):
                raise UserError(
                    f'config.model.{field} = False, but this objective needs it; set it to True.'
                )
        return dataclasses.replace(self, encoder=encoder, inputs=inputs, clock=clock)

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of patches (h, w) of the student's images."""
        return patch_grid(self.inputs.image_size, self.encoder.patch_size)

    @property
    def num_patches(self) -> int:
        """Of one of the student's images."""
        return self.grid[0] * self.grid[1]

    @property
    def averaged(self) -> tuple[str, ...]:
        """Parts of the parameters whose average, `variables['ema']`, the method reads; () none."""
        return ()

    @property
    def needs_whole_batch(self) -> bool:
        """Whether the loss of a batch is not the mean of the losses of its parts."""
        return False

    @property
    def momentary(self) -> tuple[str, ...]:
        """Metrics of which the log shows the step's own value, such as a schedule's; of the others
        it shows the mean since its last line.
        """
        return ()

    @property
    def batch_parts(self) -> int:
        """The images that are computed at once must divide into so many equal parts."""
        return 1

    def views(self, data: DataConfig) -> dict[str, View]:
        """What the method sees of an item: the batch's images by name, `images` among them; made by
        `data.view(**changes)`.
        """
        return {'images': data.view()}

    def init(self, key: jax.Array, images: Any) -> Variables:
        """Fresh variables for images of the shape of `images` [B,H,W,C] (values unused)."""
        raise NotImplementedError

    def pretrained(self) -> Variables:
        """Collections read from files (host arrays), which replace those of `init`."""
        return {}

    def progress(self, step: jax.Array) -> jax.Array:
        """How far the run is after `step` updates, float32 from 0 to 1."""
        return self.clock.progress(step)

    def duration(self, name: str) -> float | None:
        """The duration `name` of this section (`name_epochs`, `name_percent`, …) in steps, not
        rounded; None where it is not given.
        """
        return self.clock.duration(self, name, path='objective')

    def encode(
        self,
        params: Any,
        images: jax.Array,
        *,
        visible: jax.Array | None = None,
        mask: jax.Array | None = None,
        keys: jax.Array | None = None,
        **taps: Any,
    ) -> Encoded:
        """What the encoder makes of images [B,H,W,C] in [0, 1]; see `ViT.apply`.

        params: the trained parameters or an average of them, with the part `encoder`. visible:
        [B,K] int32, the only patches that are encoded. mask: [B,N] bool, patches behind the mask
        token. keys: typed keys [B] for drop path, None: deterministic. taps: `layers`, `attention`
        and `queries_keys` of chosen blocks, and a `condition` or `hook`.
        """
        return self.encoder.apply(
            {'params': params['encoder']},
            self.inputs.normalize(images),
            visible_ids=visible,
            mask=mask,
            drop_path_keys=keys,
            **taps,
        )

    def mask(self, variables: Variables, batch: Batch, step: jax.Array) -> jax.Array | None:
        """Which tokens of `batch['images']` are hidden, [B,N] bool, by chance or by what a network
        says of them; None where the method hides none. The same for loss and pictures (which may
        draw it together with what else they need).
        """
        return None

    def loss(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array | Weighted, dict[str, jax.Array], Any]:
        """Scalar float32 loss (or a `losses.Weighted`, where a mean is taken over a count that
        differs from batch to batch), scalar metrics, and the new `state` collection ({} if none).

        `batch` has `images` float32 [B,H,W,C] in [0, 1], `keys` [B] for all that is drawn per
        image, and `labels` int32 [B] if known; `key` is for draws shared by the whole batch.
        """
        raise NotImplementedError

    def features(
        self, variables: Variables, images: jax.Array, *, layers: tuple[int, ...] = ()
    ) -> Encoded:
        """What the encoder makes of whole images [B,H,W,C] in [0, 1].

        layers: numbers of blocks whose tokens are given too, through the final norm.
        """
        params = variables['params']
        encoded = self.encode(params, images, layers=layers)
        normed = {
            block: self.encoder.normed(params['encoder'], level)
            for block, level in encoded.layers.items()
        }
        return encoded.replace(layers=normed)

    def health(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> dict[str, jax.Array]:
        """Scalars by name that say how a batch fares, for the log once in a while; the arguments
        are those of `loss`, for some images of the batch.
        """
        return {}

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        """What there is to see of a batch: sheets by name, each a list of `mim_jax.panels` that are
        drawn beside the input. Can be jitted.
        """
        return {}

    def weight_decayed(self, params: Any, *, also: tuple[str, ...] = ()) -> Any:
        """Tree of bool over `params`, see `parameter_rules.weight_decayed`."""
        return parameter_rules.weight_decayed(params, also=also)

    def layers(self, params: Any) -> Any:
        """Tree over `params` of layer ids for layer-wise decay, see `parameter_rules.layers`."""
        return parameter_rules.layers(params, depth=self.encoder.depth)
