"""What was meant by a word that is no key of a config."""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from mim_jax import kinds
from mim_jax.errors import UserError

# Names that other code bases have for what is called otherwise here, or lies deeper.
ALIASES = {
    'accum_iter': 'accumulation',
    'accum_steps': 'accumulation',
    'b1': 'beta1',
    'b2': 'beta2',
    'blr': 'learning_rate',
    'clip_grad': 'clip_norm',
    'color_jitter': 'colors.brightness',
    'data_path': 'source.path',
    'data_set': 'source.name',
    'depths': 'depth',
    'dim': 'width',
    'drop_path_rate': 'drop_path',
    'ema_decay': 'ema.decay',
    'embed_dim': 'width',
    'epochs': 'total_epochs',
    'grad_clip': 'clip_norm',
    'hflip': 'flip',
    'hidden_size': 'width',
    'img_size': 'image_size',
    'input_size': 'data.image_size',
    'layer_scale_init_value': 'layer_scale',
    'layers': 'depth',
    'lr': 'learning_rate',
    'mask_ratio': 'masking.ratio',
    'max_lr': 'learning_rate',
    'min_lr': 'end_learning_rate',
    'num_epochs': 'total_epochs',
    'num_heads': 'heads',
    'num_layers': 'depth',
    'num_workers': 'workers',
    'opt': 'optimizer.rule',
    'resolution': 'image_size',
    'save_every': 'checkpoint.every_steps',
    'steps': 'total_steps',
    'warmup': 'warmup_epochs',
    'warmup_lr': 'warmup_learning_rate',
    'wd': 'weight_decay',
}


def field(
    cls: type, key: str, path: str, *, root: type | None = None
) -> tuple[dataclasses.Field, Any]:
    """The field `key` of a section with its kind; `path` is where it was looked for.

    Raises UserError where there is none, with what was meant: a key of the section by another name,
    one that lies deeper in it, or elsewhere in the config `root`.
    """
    known = {field.name: (field, kind) for field, kind in kinds.fields(cls)}
    if key in known:
        return known[key]
    if ALIASES.get(key) not in known:
        stem, wanted = path.removesuffix(key), {key, ALIASES.get(key)}
        places = [*_places(cls, wanted, stem), *(_places(root, wanted, '') if root else ())]
        # A key of another option of this very section is not to be looked for elsewhere.
        if places and path not in [place.split(' ')[0] for place in places]:
            text = kinds.shown(path)
            raise UserError(f'config.{text}: there is no such key; did you mean {places[0]}?')
    raise UserError(unknown(path, key, known))


def _places(cls: type, wanted: set[str | None], start: str) -> Iterator[str]:
    """Where keys of these names, or of these ends of a path, lie below a section: the nearest
    first, with the options that they belong to.
    """
    waiting = [(start, cls, ())]
    while waiting:
        stem, cls, chosen = waiting.pop(0)
        for field, kind in kinds.fields(cls):
            where = f'{stem}{field.name}'
            if any(name and f'.{where}'.endswith(f'.{name}') for name in wanted):
                yield where + (f' (of {" and ".join(chosen)})' if chosen else '')
            for name, inner in field.metadata.get('options', {'': kind}).items():
                if dataclasses.is_dataclass(inner):
                    of = (f'{field.name}.name={name}',) if name else ()
                    waiting.append((f'{where}.', inner, chosen + of))


def unknown(path: str, key: str, known: Any, what: str = 'key') -> str:
    """The sentence on a key, or another word, that is none of `known`."""
    nearest = difflib.get_close_matches(key, list(known), 1, cutoff=0.5)
    if ALIASES.get(key) in known:
        nearest = [ALIASES[key]]
    listed = ', '.join(sorted(known))
    hint = f'did you mean {nearest[0]}?' if nearest else f'the {what}s here are {listed}.'
    return f'config.{kinds.shown(path)}: there is no such {what}; {hint}'
