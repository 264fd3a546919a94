"""The study itself: from labelled batches to figures, with and without aggregation."""

import dataclasses
import functools
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import UserError
from mim_jax.morphing import bipartite_groups, morph
from mim_jax.morphing.schedules import groups_left
from mim_jax.pilot_study import classes, figures, probe
from mim_jax.teachers import Loaded

# uint8 images [B,H,W,C] -> tokens float32 [B,N,D], and the same averaged in groups.
See = Callable[[np.ndarray], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class Aggregation:
    """Bipartite merging of tokens, `per_step` in each of `num_steps` steps, none protected."""

    num_tokens: int
    per_step: int
    num_steps: int

    @classmethod
    def make(cls, num_tokens: int, *, num_groups: int | None = None, num_steps: int | None = None):
        """To exactly `num_groups` (None: half of the tokens), in as few equal steps as that takes
        or in `num_steps`.

        Raises UserError where that is impossible.
        """
        if num_tokens < 2:
            raise UserError('An image of one token has no groups: raise --image_size')
        num_groups = num_tokens - num_tokens // 2 if num_groups is None else num_groups
        if not 1 <= num_groups <= num_tokens:
            raise UserError(
                f'--num_groups={num_groups}: an image has {num_tokens} tokens, so give 1 to '
                f'{num_tokens}'
            )
        merged = num_tokens - num_groups
        possible = [k for k in range(1, merged + 1) if merged % k == 0]
        possible = {
            k: cls(num_tokens, merged // k, k)
            for k in possible
            if groups_left(num_tokens, merged // k, k, protect_first=False) == num_groups
        } or {1: cls(num_tokens, 0, 1)}
        num_steps = num_steps or min(possible)
        if num_steps not in possible:
            raise UserError(
                f'--steps={num_steps}: {num_tokens} tokens do not come to {num_groups} groups in '
                f'{num_steps} equal steps; possible are {", ".join(map(str, possible))}'
            )
        return possible[num_steps]

    @property
    def num_groups(self) -> int:
        """How many groups each image comes to."""
        return self.num_tokens - self.per_step * self.num_steps


def seer(loaded: Loaded, aggregation: Aggregation) -> See:
    """What the teacher sees, compiled once."""
    teacher, per_step, steps = loaded.teacher, aggregation.per_step, aggregation.num_steps

    @jax.jit
    def see(params, images):
        tokens = teacher.tokens(params, images.astype(jnp.float32) / 255)
        groups = bipartite_groups(tokens, per_step, steps, protect_first=False)
        return tokens, morph(tokens, groups)

    return functools.partial(see, jax.device_put(loaded.params))


@dataclasses.dataclass(frozen=True)
class Classifiers:
    """What says a token's class.

    directions: unit [C,D], by cosine. probes: one for tokens, one for groups.
    """

    directions: np.ndarray
    probes: tuple[probe.Probe, probe.Probe]


def learn(
    see: See, batches: Iterable[dict], *, num_classes: int, directions: np.ndarray | None
) -> Classifiers:
    """Classifiers from labelled training batches; `directions` from text, or None: class means."""
    seen, labels = [], []
    for batch in batches:
        valid = batch['valid']
        seen.append(np.stack([np.asarray(x) for x in see(batch['images'])])[:, valid])
        labels.append(batch['labels'][valid])
    tokens, labels = np.concatenate(seen, axis=1), np.concatenate(labels)
    if directions is None:
        sums = np.zeros((num_classes, tokens.shape[-1]))
        np.add.at(sums, labels, tokens[0].mean(axis=1))
        directions = classes.from_sums(sums, np.bincount(labels, minlength=num_classes))
    of_tokens = np.repeat(labels, tokens.shape[2])
    probes = [
        probe.fit(x.reshape(len(of_tokens), -1), of_tokens, num_classes=num_classes) for x in tokens
    ]
    return Classifiers(directions, tuple(probes))


def measure(
    see: See, batches: Iterable[dict], classifiers: Classifiers, *, grid: tuple[int, int]
) -> dict[str, np.ndarray]:
    """Every figure on labelled test batches, float64 [2,T]: of tokens and of groups, per image."""
    found = []
    for batch in batches:
        both = zip(see(batch['images']), classifiers.probes, strict=True)
        values = [
            _measure(x, batch['labels'], classifiers.directions, probe, grid=grid)
            for x, probe in both
        ]
        values = jax.tree.map(lambda *v: np.stack(v), *jax.device_get(values))
        found.append({name: v[:, batch['valid']] for name, v in values.items()})
    return jax.tree.map(lambda *v: np.concatenate(v, axis=1).astype(np.float64), *found)


@functools.partial(jax.jit, static_argnames='grid')
def _measure(tokens, labels, directions, probe, *, grid):
    similarity = figures.cosines(tokens, directions)
    predicted = similarity.argmax(axis=-1)
    return {
        'accuracy': figures.accuracy(predicted, labels),
        'probe_accuracy': figures.accuracy(probe(tokens).argmax(axis=-1), labels),
        'class_similarity': figures.class_similarity(similarity, labels),
        'neighbour_agreement': figures.neighbour_agreement(predicted, grid=grid),
        'pair_agreement': figures.pair_agreement(predicted, num_classes=len(directions)),
        'neighbour_cosine': figures.neighbour_cosine(tokens, grid=grid),
        'pair_cosine': figures.pair_cosine(tokens),
    }
