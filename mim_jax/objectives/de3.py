"""De3 (You et al., NeurIPS 2023, arXiv 2302.01056): denoising as a defence against attacks.

Noise covers what an attacker has added to an image, a frozen network that NIM has trained
(`nim.py`) restores the image, and a classifier, fine-tuned on such images, sees what is restored.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import checkpoints, keys, panels, work_directory
from mim_jax.clock import Clock
from mim_jax.corruptions import Noise
from mim_jax.errors import UserError
from mim_jax.inputs import Inputs
from mim_jax.models.decoders import MAEDecoder
from mim_jax.models.vit import ViT
from mim_jax.objectives.base import Batch, Objective, Variables
from mim_jax.objectives.classification import Classification
from mim_jax.objectives.nim import NIM
from mim_jax.panels import Sheets
from mim_jax.targets import Pixels
from mim_jax.weights import fitting

FIELD = 'config.objective.denoiser.weights'


@dataclasses.dataclass(frozen=True)
class Denoiser:
    """A frozen network that predicts clean pixels; it sees images normalised as the classifier's.

    weights: work directory of a run of the objective nim.
    model, decoder: as in that run.
    normalize: as `target.normalize` there. Mean and deviation that predicted patches then lack are
      those of the patches given, before the noise.
    """

    weights: str | None = None
    model: ViT = ViT()
    decoder: MAEDecoder = MAEDecoder()
    normalize: bool = True

    def network(self, inputs: Inputs) -> NIM:
        """NIM for images like `inputs`."""
        network = NIM(target=Pixels(normalize=self.normalize), decoder=self.decoder)
        return network.bind(self.model, inputs)

    def load(self, inputs: Inputs) -> Any:
        """The network's parameters, host arrays. Raises UserError for what does not fit."""
        made = 'the work directory of a run of nim, such as configs/nim.py makes'
        if self.weights is None:
            raise UserError(f'{FIELD} is not set: it names {made}.')
        what = f'{FIELD}: {self.weights}'
        try:
            sections = ('objective', 'model', 'data')
            ran, model, data = (work_directory.section(self.weights, name) for name in sections)
            params = checkpoints.restore_variables(self.weights)[0]['params']
        except UserError as error:
            raise UserError(f'{FIELD}: {error}') from error
        if ran['name'] != 'nim' or ran['target']['name'] != 'pixels':
            raise UserError(f'{what} does not predict the pixels of noisy images; give {made}.')
        fitting.compare_models(model, self.model, what=what)
        theirs = (ran['target']['normalize'], *(tuple(data[name]) for name in ('mean', 'std')))
        ours = (self.normalize, tuple(inputs.mean), tuple(inputs.std))
        if theirs != ours:
            raise UserError(
                f'{what} has target.normalize, data.mean and data.std of {theirs}, and this '
                f'config of {ours}; make them equal.'
            )
        network, images = self.network(inputs), jnp.zeros((1, *inputs.image_size, inputs.channels))
        expected = jax.eval_shape(network.init, jax.random.key(0), images)['params']
        fitting.check_params(params, expected, what=what)
        return params


@dataclasses.dataclass(frozen=True)
class De3(Classification):
    """The defaults are those of the released code.

    noise: that training images get, erased and mixed already.
    test_noise: that images get which are classified.
    defence: of noise and 'denoising', or of 'noise' alone, both of its options; 'none': of nothing.
      With the first two images are cut to [0, 1] before the classifier sees them.
    """

    denoiser: Denoiser = Denoiser()
    noise: Noise = Noise(sigma=(0.0, 30.0))
    test_noise: Noise = Noise(sigma=(70.0, 70.0))
    defence: Literal['denoising', 'noise', 'none'] = 'denoising'

    def bind(self, encoder: ViT, inputs: Inputs, clock: Clock | None = None) -> Objective:
        self.denoiser.network(inputs)  # says what is wrong where it does not fit the images
        return super().bind(encoder, inputs, clock)

    def init(self, key: jax.Array, images: Any) -> Variables:
        variables = super().init(key, images)
        if self.defence == 'denoising':
            network = self.denoiser.network(self.inputs)
            variables['teacher'] = network.init(keys.named(key, 'denoiser'), images)['params']
        return variables

    def pretrained(self) -> Variables:
        if self.defence != 'denoising':
            return {}
        return {'teacher': self.denoiser.load(self.inputs)}

    def given(self, variables: Variables, images: jax.Array, own: jax.Array) -> jax.Array:
        return self.defended(variables, images, own, noise=self.noise)[-1]

    def logits(
        self, variables: Variables, images: jax.Array, key: jax.Array | None = None
    ) -> jax.Array:
        """Scores of the classes for whole images [B,H,W,C] in [0, 1], float32 [B,classes].

        key: for the noise; None: every image has that of its place in the batch, always the same.
        """
        own = keys.per_example(jax.random.key(0) if key is None else key, len(images))
        images = self.defended(variables, images, own, noise=self.test_noise)[-1]
        return super().logits(variables, images)

    def with_noise(self, deviation: float) -> 'De3':
        """This classifier, defended by noise of another deviation in grey levels when it
        classifies; 0: not at all.
        """
        noise = Noise(sigma=(deviation, deviation))
        defence = self.defence if deviation else 'none'
        return dataclasses.replace(self, test_noise=noise, defence=defence)

    def defended(
        self, variables: Variables, images: jax.Array, own: jax.Array, *, noise: Noise
    ) -> list[jax.Array]:
        """What becomes of images [B,H,W,C] on their way to the classifier, the last what it sees.

        own: typed keys [B]. Gradients flow through it, so that an attacker can know of it.
        """
        if self.defence == 'none':
            return [images]
        stages = [noise(keys.named(own, 'defence'), images).images]
        if self.defence == 'denoising':
            network = self.denoiser.network(self.inputs)
            prediction = network.predict(variables['teacher'], stages[0])
            stages.append(network.target.to_images(prediction, images))
        return [jnp.clip(stage, 0, 1) for stage in stages]

    def pictures(
        self, variables: Variables, batch: Batch, key: jax.Array, step: jax.Array
    ) -> Sheets:
        stages = self.defended(variables, batch['images'], batch['keys'], noise=self.test_noise)
        titles = ('with noise', 'restored, as classified')
        shown = [panels.Image(x, title=t) for x, t in zip(stages, titles, strict=False)]
        return {'defence': shown} if self.defence != 'none' else {}
