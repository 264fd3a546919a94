"""What was meant by a word that is no key of a config."""

import dataclasses
import difflib
from collections.abc import Iterator
from typing import Any

from ml_collections import ConfigDict

from mim_jax import kinds
from mim_jax.errors import UserError

# Names that other code bases have for what is called otherwise here, or lies deeper.
ALIASES = {
    'accum_iter': 'accumulation',
    'accum_steps': 'accumulation',
    'attn_drop_rate': 'attention_dropout',
    'b1': 'beta1',
    'b2': 'beta2',
    'blr': 'learning_rate',
    'clip_grad': 'clip_norm',
    'color_jitter': 'colors.brightness',
    'data_path': 'source.path',
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
    cls: type, key: str, path: str, *, root: type, config: ConfigDict
) -> tuple[dataclasses.Field, Any]:
    """The field `key` of a section with its kind; `path` is where it was looked for.

    Raises UserError where there is none, with what was meant: a key of the section by another name,
    of another option than the one that `config` chooses there, or one that lies deeper in the
    section, or elsewhere in the config, whose class is `root`.
    """
    known = {field.name: (field, kind) for field, kind in kinds.fields(cls)}
    if key in known:
        return known[key]
    if ALIASES.get(key) not in known:
        places = list(_places(root, {key, ALIASES.get(key)}, config))
        head = f'config.{kinds.shown(path)}: there is no such key'
        others = [chosen[-1] for where, chosen in places if where == path]
        if others:
            raise UserError(f'{head} here; it is one of {" and of ".join(others)}.')
        stem = path.removesuffix(key)
        # In this section, of options that the config chooses, near to its root.
        places.sort(
            key=lambda place: (not place[0].startswith(stem), len(place[1]), place[0].count('.'))
        )
        if places:
            where, chosen = places[0]
            of = f' (of {" and ".join(chosen)})' if chosen else ''
            raise UserError(f'{head}; did you mean {where}{of}?')
    raise UserError(unknown(path, key, known))


def _places(
    root: type, wanted: set[str | None], config: ConfigDict
) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Where keys of these names, or of these ends of a path, lie in a config, each with the options
    that it belongs to and `config` does not choose.
    """
    waiting = [('', root, (), config)]
    while waiting:
        stem, cls, chosen, section = waiting.pop(0)
        for field, kind in kinds.fields(cls):
            where = f'{stem}{field.name}'
            if any(name and f'.{where}'.endswith(f'.{name}') for name in wanted):
                yield where, chosen
            inner = section.get(field.name) if isinstance(section, ConfigDict) else None
            current = inner.get('name') if isinstance(inner, ConfigDict) else None
            for name, option in field.metadata.get('options', {'': kind}).items():
                if not dataclasses.is_dataclass(option):
                    continue
                of = chosen if name in ('', current) else (*chosen, f'{where}.name={name}')
                waiting.append((f'{where}.', option, of, None if of != chosen else inner))


def unknown(path: str, key: str, known: Any, what: str = 'key') -> str:
    """The sentence on a key, or another word, that is none of `known`."""
    nearest = difflib.get_close_matches(key, list(known), 1, cutoff=0.5)
    if ALIASES.get(key) in known:
        nearest = [ALIASES[key]]
    listed = ', '.join(sorted(known))
    hint = f'did you mean {nearest[0]}?' if nearest else f'the {what}s here are {listed}.'
    return f'config.{kinds.shown(path)}: there is no such {what}; {hint}'
