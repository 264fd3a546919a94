"""Token morphing: which tokens belong together, and averaging over them.

A schedule (`schedules.py`) says how many tokens join, a grouping (one of GROUPINGS) which of them,
and `morph` (`average.py`) averages.
"""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp

from mim_jax import keys as named_keys
from mim_jax.config import choice
from mim_jax.errors import UserError
from mim_jax.morphing.average import morph
from mim_jax.morphing.base import Grouping, joined_share, placed, singletons
from mim_jax.morphing.bipartite import Bipartite, bipartite_groups
from mim_jax.morphing.clusters import KMeans, KMedoids, RandomGroups
from mim_jax.morphing.layerwise import NO_NETWORK, Layerwise
from mim_jax.morphing.schedules import groups_left, merges_per_step, sample_schedule
from mim_jax.morphing.superpixels import Superpixels
from mim_jax.panels import Groups
from mim_jax.ranges import Count, Number, Repeats

GROUPINGS = {
    'bipartite': Bipartite,
    'kmeans': KMeans,
    'kmedoids': KMedoids,
    'superpixels': Superpixels,
    'random': RandomGroups,
    'layerwise': Layerwise,
}

__all__ = [
    'GROUPINGS',
    'Grouping',
    'Morphing',
    'bipartite_groups',
    'groups_left',
    'joined_share',
    'merges_per_step',
    'morph',
    'placed',
    'sample_schedule',
]

# Which of the two numbers of a schedule are drawn anew each time.
DRAWN_MERGED = ('random', 'fixed_steps')
DRAWN_STEPS = ('random', 'fixed_number')


@dataclasses.dataclass(frozen=True)
class Morphing:
    """How tokens are grouped; the defaults are those of the released code.

    schedule: 'random' draws the number of merged tokens and of steps anew each time; 'fixed_number'
      takes `num_merged` and draws the steps, 'fixed_steps' takes `num_steps` and draws the number;
      'constant' takes both; 'none' leaves every token alone (token-wise targets).
    num_draws: draws per training step, where there is something to draw; the loss is the mean over
      them.
    num_shares: equal parts of the global batch, in its order, each with draws of its own. In the
      released code every process draws for itself: 8 shares are its run on 8 GPUs. Mesh and
      accumulation may be any, but for a (micro)batch that divides into the shares.
    max_merged: the most tokens that a draw may ask to merge; None means all. Divided into steps it
      is rounded up to whole tokens per step.
    max_steps: the most merging steps that may be drawn.
    num_merged: with 'fixed_number' and 'constant', the tokens to merge; None means half of them.
    num_steps: with 'fixed_steps' and 'constant', the merging steps.
    grouping: which tokens join, one of GROUPINGS.

    Source: DTM (arXiv 2401.00254) and its released code.
    """

    schedule: Literal['random', 'fixed_number', 'fixed_steps', 'constant', 'none'] = 'random'
    num_draws: Repeats = 2
    num_shares: Count = 1
    max_merged: Number | None = None
    max_steps: Repeats = 14
    num_merged: Number | None = None
    num_steps: Repeats = 1
    grouping: Any = choice(GROUPINGS, 'bipartite')

    def check(self, num_tokens, *, network=False, grid=True):
        """Raises UserError where a schedule asks for more tokens than an image has, or the grouping
        for a target whose `network` can be merged, or for the tokens of a whole `grid`.
        """
        self._bounds(num_tokens)
        if self.schedule != 'none' and isinstance(self.grouping, Layerwise) and not network:
            raise UserError(NO_NETWORK)
        if self.schedule != 'none' and self.grouping.needs_grid and not grid:
            name = next(n for n, kind in GROUPINGS.items() if isinstance(self.grouping, kind))
            raise UserError(
                f'config.objective.morphing.grouping {name!r} is formed on the whole grid of '
                'patches, and this method morphs only some of them: choose another grouping.'
            )
        if self.shares(num_tokens) > 1 and isinstance(self.grouping, Layerwise):
            raise UserError(
                f'config.objective.morphing.num_shares = {self.num_shares}: the teacher, in which '
                "grouping 'layerwise' merges, sees the batch in one pass; set num_shares to 1, or "
                'choose another grouping.'
            )

    def shares(self, num_tokens):
        """Into how many equal parts a batch is divided: 1 where there is nothing to draw."""
        return 1 if self._fixed(num_tokens) else self.num_shares

    def draw(self, key, *, num_tokens):
        """One schedule `(tokens_per_step, num_steps)`, int32 scalars, of one share of the batch.

        Raises:
          UserError: the schedule asks for more tokens than there are.
        """
        num_merged, num_steps = self._bounds(num_tokens)
        return sample_schedule(
            key, num_tokens=num_tokens, num_merged=num_merged, num_steps=num_steps
        )

    def groups(self, key, target, *, keys=None, images=None, grid=None, merged=None):
        """Draws a schedule and groups the tokens of `target`.

        Args:
          key: one PRNG key, for the draw that the whole batch shares; with several shares each has
            its own of `jax.random.split(key, num_shares)`.
          target: [B, N, D]; carries no gradient.
          keys: typed keys [B], for what a grouping draws per image; None derives them from `key`.
          images: [B, H, W, C] in [0, 1], and grid: (h, w) of the tokens, for groupings that look at
            the image.
          merged: function of the number of tokens to merge (int32 scalar) that computes (target,
            groups) with these merged inside the target's network, for grouping 'layerwise'.

        Returns:
          groups [B, N] int32, for `morph` on target and prediction alike.

        Raises:
          UserError: the schedule or the grouping does not fit the target.
        """
        if self.schedule == 'none':
            return singletons(target)
        return self._grouped(key, target, keys, images=images, grid=grid, merged=merged)[1]

    def pairs(self, key, prediction, target, *, keys=None, images=None, grid=None, merged=None):
        """`[(prediction, target), ...]`, both [B, N, D] float32 and morphed by the same groups.

        One pair per draw; the loss is the mean of a distance over all tokens and pairs. With
        schedule 'none' the one pair that was given. The other arguments are those of `groups`.
        """
        given = {'keys': keys, 'images': images, 'grid': grid, 'merged': merged}
        pairs = []
        for grouped, groups in self.drawn(key, target, **given):
            both = prediction, grouped
            if groups is None:
                pairs.append(tuple(x.astype(jnp.float32) for x in both))
            else:
                pairs.append(tuple(morph(x, groups) for x in both))
        return pairs

    def drawn(self, key, target, *, keys=None, images=None, grid=None, merged=None):
        """`[(target, groups), ...]`, one per draw: groups [B, N] int32 for `morph`, and the target,
        not averaged over them, that they are of. With schedule 'none' one, whose groups are None.
        The arguments are those of `groups`.
        """
        if self.schedule == 'none':
            return [(target, None)]
        given = {'images': images, 'grid': grid, 'merged': merged}
        found = []
        for i, draw_key in enumerate(jax.random.split(key, self._draws(target.shape[1]))):
            draw_keys = named_keys.named(keys, f'draw{i}')
            found.append(self._grouped(draw_key, target, draw_keys, **given))
        return found

    def examples(self, target, *, num=4, keys=None, images=None, grid=None, merged=None):
        """Groups for pictures: int32 [S, B, N] and S titles, from weak to strong morphing.

        `num` schedules that span what may be drawn; the one there is where nothing is drawn. The
        other arguments are those of `groups`.
        """
        num_tokens = target.shape[1]
        (least, most), (fewest, steps) = self._bounds(num_tokens)
        schedules = []
        for i in range(1, num + 1):
            num_merged = most * i // num if least < most else most
            num_steps = -(-steps * i // num) if fewest < steps else steps
            per_step = merges_per_step(num_merged, num_steps, num_tokens=num_tokens)
            schedules.append((per_step, num_steps))
        if keys is None:
            keys = named_keys.per_example(jax.random.key(0), target.shape[0])
        given = {'keys': keys, 'images': images, 'grid': grid, 'merged': merged}
        found, titles = [], []
        for schedule in dict.fromkeys(schedules):
            traced = tuple(jnp.int32(x) for x in schedule)
            found.append(self.grouping.with_target(target, traced, **given)[1])
            titles.append(self.grouping.title(num_tokens, schedule))
        return jnp.stack(found), tuple(titles)

    def panels(self, target, *, places=None, num_tokens=None, **given):
        """What of this an objective's `pictures` shows: a list of `panels.Groups`, one for each of
        `examples`, whose arguments these are; empty where tokens stay alone.

        places: [B,K] int32, where the tokens of `target` are among `num_tokens`, whose others are
        shown alone; None: they are all there are.
        """
        if self.schedule == 'none':
            return []
        groups, titles = self.examples(target, **given)
        first = jnp.zeros(target.shape[0], jnp.int32) if self.grouping.protected else None
        if places is not None:
            groups = [placed(found, places, num_tokens=num_tokens) for found in groups]
            first = places[:, 0] if self.grouping.protected else None
        return [Groups(x, first, title) for x, title in zip(groups, titles, strict=True)]

    def _grouped(self, key, target, keys, **given):
        if keys is None:
            keys = named_keys.per_example(key, target.shape[0])
        num_tokens = target.shape[1]
        if self.shares(num_tokens) > 1:
            return target, self._groups_by_share(key, target, keys, **given)
        schedule = self.draw(key, num_tokens=num_tokens)
        return self.grouping.with_target(target, schedule, keys=keys, **given)

    def _groups_by_share(self, key, target, keys, *, images, grid, merged):
        """Groups [B, N]: each share of the batch by the schedule that its own key gives.

        The i-th of S equal parts of a batch in order is the i-th part of any microbatch as well,
        which takes every A-th row of it (`TrainStep`), and of any device's rows: an image has the
        same schedule however the batch is split.
        """
        del merged  # no grouping that reads it gets here, see `check`
        batch, num_tokens, _ = target.shape
        if batch % self.num_shares:
            raise ValueError(f'{batch} images do not divide into {self.num_shares} equal shares.')

        def split(x):
            return x.reshape(self.num_shares, -1, *x.shape[1:])

        def of_one(key, target, keys, images):
            schedule = self.draw(key, num_tokens=num_tokens)
            return self.grouping(target, schedule, keys=keys, images=images, grid=grid)

        given = jax.tree.map(split, (target, keys, images))
        groups = jax.vmap(of_one)(jax.random.split(key, self.num_shares), *given)
        return groups.reshape(batch, num_tokens)

    def _draws(self, num_tokens):
        return 1 if self._fixed(num_tokens) and not self.grouping.draws else self.num_draws

    def _fixed(self, num_tokens):
        """Whether there is but one schedule."""
        (least, most), (fewest, steps) = self._bounds(num_tokens)
        return least == most and fewest == steps

    def _bounds(self, num_tokens):
        """(fewest, most) tokens to merge and (fewest, most) steps, all inclusive."""
        if self.schedule == 'none':
            return (0, 0), (1, 1)
        drawn = self.schedule in DRAWN_MERGED
        name = 'max_merged' if drawn else 'num_merged'
        most = getattr(self, name)
        if most is None:
            most = num_tokens if drawn else num_tokens // 2
        if most > num_tokens:
            raise UserError(
                f'config.objective.morphing.{name} = {most}: an image has only {num_tokens} '
                f'tokens; lower it, or set it to None.'
            )
        merged = (0, most) if drawn else (most, most)
        if not self.grouping.has_steps:
            return merged, (1, 1)
        drawn = self.schedule in DRAWN_STEPS
        return merged, (1, self.max_steps) if drawn else (self.num_steps, self.num_steps)
