"""The features of sets of images, as evaluators are given them: one pass of the encoder over a set.

What the evaluators of a run ask for, poolings of several blocks or whole tokens, of plain images or
of augmented views, is known from the start: one program for each of the two kinds gives all of it.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax

from mim_jax import data, keys, sharding
from mim_jax.data.augment import augment_views
from mim_jax.errors import UserError
from mim_jax.evaluators import (
    Evaluator,
    Features,
    Part,
    Repeated,
    collect,
    pool_tokens,
    recipes,
)
from mim_jax.program import Program


class Encoding:
    """Encodes images for the evaluators (by name) of a run; raises UserError where the encoder has
    not what they pool.

    batch_size: of all processes.
    """

    def __init__(
        self, program: Program, evaluators: Mapping[str, Evaluator], *, batch_size: int
    ) -> None:
        self._program = program
        self._batch_size = batch_size
        trained = program.views
        views = {False: data.eval_views(program.run.data, trained)['images']}
        views[True] = trained['images']
        self._views = {
            augmented: dataclasses.replace(view, boxes=False, maps=())
            for augmented, view in views.items()
        }
        self._parts: dict[bool, set[Part]] = {False: set(), True: set()}
        depth = program.run.model.depth
        for name, evaluator in evaluators.items():
            wanted = parts_of(evaluator)
            blocks = 1 + max(part.back for part in wanted)
            if blocks > depth:
                raise UserError(
                    f'config.eval.{name} asks for the last {blocks} blocks, but the encoder has '
                    f'{depth}.'
                )
            self._parts[views_of(evaluator) > 0] |= wanted
        params = program.abstract_state.variables['params']
        batch = {'images': program.abstract_batch['images']}
        batch['index'] = jax.ShapeDtypeStruct(batch['images'].shape[:1], 'int32')
        # Compiled at the first call, once for the whole run.
        self._compiled = {kind: self._jitted(kind) for kind, parts in self._parts.items() if parts}
        self._shapes = {
            kind: jax.eval_shape(encode, {'params': params}, batch)
            for kind, encode in self._compiled.items()
        }

    def collect(
        self,
        variables: Mapping[str, Any],
        source: data.Source,
        *,
        parts: set[Part],
        views: int,
        check: Callable[[], None],
    ) -> dict[Part, Features]:
        """This process's features of a source's images, by parts.

        parts: those that are kept.
        views: 0 for the images as evaluation sees them; else so many augmented views of each, drawn
          as for training. View v of image i is a function of i and v alone.
        check: called before every batch; what it raises ends the pass.
        """
        encode = self._compiled[views > 0]
        batches = data.eval_batches(
            Repeated(source, views) if views else source,
            # An image that cannot be read takes no part.
            dataclasses.replace(self._program.run.data, max_corrupt_share=1.0),
            views={'images': self._views[views > 0]},
            batch_size=self._batch_size,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

        def encoded(batch: Mapping[str, Any]) -> dict[Part, jax.Array]:
            check()
            # Only what the encoder reads is put on the devices; the labels stay here.
            wanted = {key: batch[key] for key in ('images', 'index')}
            wanted = sharding.put_batch(wanted, self._program.mesh)
            found = encode({'params': variables['params']}, wanted)
            return {part: found[part] for part in parts}

        return collect(encoded, batches)

    def row_bytes(self, evaluator: Evaluator) -> int:
        """Bytes of what an evaluator is given of one image."""
        shapes = self._shapes[views_of(evaluator) > 0]
        used = [shapes[part] for recipe in recipes(evaluator) for part in recipe]
        count = sum(x.size // x.shape[0] * x.dtype.itemsize for x in used)
        return count * max(views_of(evaluator), 1)

    def _jitted(self, augmented: bool) -> Any:
        """The function (variables, batch) -> {part: rows over the mesh}."""
        objective, view = self._program.objective, self._views[augmented]
        parts = sorted(self._parts[augmented])
        depth = self._program.run.model.depth
        layers = tuple(sorted({depth - part.back for part in parts if part.back}))

        def features(variables: dict, batch: dict[str, jax.Array]) -> dict[Part, jax.Array]:
            if augmented:
                key = keys.named(jax.random.key(0), 'evaluation views')
                each = jax.vmap(jax.random.fold_in, in_axes=(None, 0))(key, batch['index'])
                images = augment_views(each, batch, {'images': view})['images']
            else:
                images = batch['images'].astype('float32') / 255
            encoded = objective.features(variables, images, layers=layers)
            levels = {depth - layer: level for layer, level in encoded.layers.items()}
            levels[0] = encoded
            return {part: pool_tokens(levels[part.back], pool=part.pooling) for part in parts}

        mesh = self._program.mesh
        place = sharding.batch_sharding(mesh)
        return jax.jit(sharding.on_mesh(features, mesh), out_shardings=place)


def parts_of(evaluator: Evaluator) -> set[Part]:
    """What an evaluator's features are made of."""
    return {part for recipe in recipes(evaluator) for part in recipe}


def views_of(evaluator: Evaluator) -> int:
    """How many augmented views of each image an evaluator asks for; 0: the image itself."""
    return getattr(evaluator, 'views', 0)
