"""How a classifier does on images that an attacker has changed, who knows all of it."""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
import optax

from mim_jax import keys as named_keys
from mim_jax.errors import UserError
from mim_jax.evaluators.base import Test
from mim_jax.evaluators.judged import Judged
from mim_jax.ranges import Count, NotNegative, Positive, Repeats


@dataclasses.dataclass(frozen=True)
class Adversarial:
    """Config section: top-1 of `objective.logits` on the evaluation split, every number of an image
    changed by at most `epsilon` grey levels of 255, and to none beyond [0, 1], so that the
    cross-entropy of its class becomes large.

    attack: 'fgsm' makes one step of `epsilon` along the sign of the gradient; 'pgd' starts anywhere
      within `epsilon` and makes `steps` of `step_size`, each cut back to within `epsilon`.
    max_test: so many images, evenly spaced over the split; None: all.
    deviations: of the noise that defends a classifier (de3), in grey levels: it is tried with each
      of these as well, and with 0 without its defence.

    What a classifier draws at random it draws anew for every step, and for the judgement.

    Source: FGSM (Goodfellow et al., ICLR 2015), PGD (Madry et al., ICLR 2018), with the defaults
    that De3 (You et al., NeurIPS 2023) is tested with.
    """

    labels: ClassVar[bool] = True
    test: ClassVar[Test] = 'needed'
    judges: ClassVar[str] = 'logits'

    attack: Literal['fgsm', 'pgd'] = 'pgd'
    epsilon: Positive = 4.0
    step_size: Positive = 2.0
    steps: Repeats = 10
    max_test: Count | None = None
    deviations: tuple[NotNegative, ...] = ()

    def check(self, objective: Any) -> None:
        """Raises UserError where a defence is to be changed that the objective has not."""
        if self.deviations and not hasattr(objective, 'with_noise'):
            raise UserError(
                f'config.eval.adversarial.deviations = {self.deviations}: this objective is not '
                'defended by noise; set it to ().'
            )

    def judge(self, judged: Judged) -> Iterator[tuple[str, float]]:
        """Yields ('top1', under attack) and ('top1_clean', without), shares in 0..1; the same of
        every deviation D, as 'top1_noise_D' and 'top1_clean_noise_D'.
        """
        yield from self._judge(judged, '')
        for deviation in self.deviations:
            other = judged.objective.with_noise(deviation)
            yield from self._judge(
                dataclasses.replace(judged, objective=other), f'_noise_{deviation:g}'
            )

    def _judge(self, judged: Judged, suffix: str) -> Iterator[tuple[str, float]]:
        def add(
            sums: Mapping[str, jax.Array],
            variables: Mapping[str, Any],
            images: jax.Array,
            labels: jax.Array,
            valid: jax.Array,
        ) -> dict[str, jax.Array]:
            def logits(images: jax.Array, key: jax.Array) -> jax.Array:
                return judged.objective.logits(variables, images, key)

            key, images = jax.random.key(0), images.astype('float32') / 255
            changed = self.changed(logits, images, labels, key)
            key, seen = named_keys.named(key, 'judged'), {'top1': changed, 'top1_clean': images}
            found = {k: logits(x, key).argmax(axis=-1) == labels for k, x in seen.items()}
            found['count'] = valid
            return {k: sums[k] + (v & valid).sum(dtype='int32') for k, v in found.items()}

        step = judged.jit(f'adversarial{suffix}', add)
        sums = dict.fromkeys(('top1', 'top1_clean', 'count'), np.int32(0))
        batches = judged.batches({'images': judged.views['images']})
        wanted = ({k: batch[k] for k in ('images', 'labels', 'valid')} for batch in batches)
        sums = judged.summed(step, sums, wanted)
        if not sums['count']:
            raise UserError(
                'The adversarial evaluator got no test image that can be read (what cannot is '
                'named above, if there is any): see the data section.'
            )
        for name in ('top1', 'top1_clean'):
            yield name + suffix, float(sums[name] / sums['count'])

    def changed(
        self, logits: Any, images: jax.Array, labels: jax.Array, key: jax.Array
    ) -> jax.Array:
        """Images [B,H,W,C] in [0, 1] under attack. logits: function of images and a key to float32
        [B,classes]; labels: int32 [B].
        """

        def uphill(changed: jax.Array, key: jax.Array) -> jax.Array:
            def loss(x: jax.Array) -> jax.Array:
                # Their sum: the gradient of an image is that of its own cross-entropy.
                found = logits(x, key)
                return optax.softmax_cross_entropy_with_integer_labels(found, labels).sum()

            return jnp.sign(jax.grad(loss)(changed))

        epsilon, step_size = self.epsilon / 255, self.step_size / 255
        if self.attack == 'fgsm':
            return jnp.clip(images + epsilon * uphill(images, key), 0, 1)

        def step(i: jax.Array, changed: jax.Array) -> jax.Array:
            moved = changed + step_size * uphill(changed, jax.random.fold_in(key, i))
            return jnp.clip(images + jnp.clip(moved - images, -epsilon, epsilon), 0, 1)

        own = named_keys.per_example(named_keys.named(key, 'start'), len(images))
        start = jax.vmap(lambda k: jax.random.uniform(k, images.shape[1:], minval=-1.0))(own)
        return jax.lax.fori_loop(0, self.steps, step, jnp.clip(images + epsilon * start, 0, 1))
