"""Import: another project's file becomes a folder of ours, whole or not at all."""

import dataclasses
import json
import re
import shutil

import numpy as np

from mim_jax.folders import new_folder
from mim_jax.models.vit import ViT
from mim_jax.weights import clip, hub_config, huggingface, mapping, native, reading, timm
from mim_jax.weights.naming import Recognised, recognise

NAMINGS = (*clip.NAMINGS, *huggingface.NAMINGS, *timm.NAMINGS)
# Fields that say nothing about a frozen encoder's function, or that its file says by itself.
NOT_A_TEACHERS = (
    'mask_token',
    'drop_path',
    'attention_dropout',
    'initialization',
    'token_initialization',
    'grid',
    'scan',
    'remat',
    'attention_kernel',
)


@dataclasses.dataclass(frozen=True)
class Found:
    """What a file of another project was recognised as, not yet read.

    match speaks of the whole file: the encoder's names and the text tower's together.
    """

    tensors: dict[str, np.ndarray]
    encoder: Recognised
    text: clip.RecognisedText | None
    match: mapping.Match
    mean: tuple[float, ...]
    std: tuple[float, ...]
    assumed: tuple[str, ...]  # which of mean and std no file states: they are the family's usual

    def described(self) -> str:
        """In a few words, what was found."""
        parts = [f'the image encoder of {self.encoder.naming.name}']
        if self.encoder.projection is not None:
            parts[0] += f' with its projection to {self.encoder.projection}'
        return ' and '.join(parts + ['the text tower'] * (self.text is not None))

    def said_of_assumptions(self) -> str:
        """What nothing states, '' if that is nothing."""
        assumed = []
        if self.encoder.assumed:
            assumed.append(f'{_arguments(self.encoder.assumed)} (--model.FIELD= sets another)')
        if self.assumed:
            usual = {name: getattr(self, name) for name in self.assumed}
            assumed.append(f"the family's {_arguments(usual)}")
        return 'assumed, as nothing states it: ' + '; '.join(assumed) if assumed else ''

    def said_of_left_out(self) -> str:
        """Which tensors are knowingly not read, '' if none."""
        names = self.match.left_out
        return names and f'left out, {len(names)} tensors: {native.some(names)}'

    def config_entry(self, out) -> str:
        """The lines of a config that make a teacher of the folder `out`."""
        default = dataclasses.asdict(ViT())
        fields = dataclasses.asdict(self.encoder.model)
        given = {n: v for n, v in fields.items() if v != default[n] and n not in NOT_A_TEACHERS}
        for name in ('patch_size', 'width', 'depth', 'heads'):
            given[name] = fields[name]
        teacher = {'weights': str(out), 'projection': self.encoder.projection}
        teacher.update(mean=self.mean, std=self.std)
        return (
            f'model section: {_arguments(given)}\n'
            'as a teacher, in a config:\n'
            f'    config.objective.target.model.update({_arguments(given)})\n'
            f'    config.objective.target.update({_arguments(teacher)})'
        )

    def report(self) -> str:
        """Family, size, fields, and how the names of the file compare with those needed."""
        encoder, match = self.encoder, self.match
        used = set(match.used)
        size = sum(t.size for n, t in self.tensors.items() if n in used)
        lines = [
            f'family: {encoder.family} ({encoder.naming.name})',
            f'size: {size:,} parameters in {len(match.used)} tensors',
            f'model: {_arguments(dataclasses.asdict(encoder.model))}',
        ]
        if encoder.projection is not None:
            lines.append(f'projection: {encoder.projection}')
        if self.text:
            lines.append(f'text tower: {_arguments(dataclasses.asdict(self.text.tower))}')
        lines.append(f'mean: {self.mean}, std: {self.std}')
        lines += [line for line in [self.said_of_assumptions()] if line]
        for kind in ('used', 'missing', 'wrong', 'unexpected', 'left_out'):
            names = getattr(match, kind)
            label = {'wrong': 'wrong shape', 'left_out': 'left out'}.get(kind, kind)
            lines.append(f'{label}: {len(names)}' + (f' ({_numbered(names)})' if names else ''))
        return '\n'.join(lines)


def _arguments(values):
    return ', '.join(f'{name}={value!r}' for name, value in values.items())


def _numbered(names):
    """Names with their first number as N, each form once: blocks.0.x, blocks.1.x are blocks.N.x."""
    return ', '.join(dict.fromkeys(re.sub(r'\.\d+\.', '.N.', name, count=1) for name in names))


def find(foreign, *, overrides=None, what) -> Found:
    """Recognises the encoder, and the text tower if any, in a `reading.Foreign`.

    overrides: ViT fields given by hand. Raises UserError, naming the file `what`, for a file of
    another family.
    """
    stated = hub_config.stated(foreign.config)
    stated.update(hub_config.normalization(foreign.preprocessor))
    encoder = recognise(
        foreign.tensors, NAMINGS, stated=stated, overrides=overrides or {}, what=what
    )
    text, match = None, encoder.match
    if encoder.family == 'clip':
        text = clip.recognise_text(
            foreign.tensors,
            stated=hub_config.stated_text(foreign.config),
            activation=encoder.model.activation,
            what=what,
        )
    if text:
        rest = {name: foreign.tensors[name].shape for name in match.unexpected}
        match = match.followed_by(mapping.match(rest, text.needed))
    mean, std = encoder.naming.normalization(encoder.source)
    return Found(
        tensors=foreign.tensors,
        encoder=encoder,
        text=text,
        match=match,
        mean=tuple(stated.get('mean', mean)),
        std=tuple(stated.get('std', std)),
        assumed=tuple(name for name in ('mean', 'std') if name not in stated),
    )


def import_(path, out, *, overrides=None, dtype='float32') -> Found:
    """Writes what `path` holds into the new folder `out`: encoder.safetensors and, for a whole
    CLIP, text.safetensors and the tokenizer's files if the source has them.

    Raises UserError, leaving nothing behind, where the file is not understood or `out` exists.
    """
    foreign = reading.read(path)
    found = find(foreign, overrides=overrides, what=str(path))
    found.match.check(str(path))
    native.check_numbers({n: foreign.tensors[n] for n in found.match.used}, what=str(path))
    model, params = found.encoder.read()
    normalization = native.normalization_metadata(
        {'mean': found.mean, 'std': found.std}, assumed=found.assumed
    )
    with new_folder(out) as folder:
        metadata = native.encoder_metadata(model, family=found.encoder.family, **normalization)
        native.save(folder / 'encoder.safetensors', params, metadata=metadata, dtype=dtype)
        if found.text:
            metadata = {
                'text': json.dumps(dataclasses.asdict(found.text.tower)),
                'family': found.encoder.family,
            }
            native.save(
                folder / 'text.safetensors', found.text.read(), metadata=metadata, dtype=dtype
            )
            for file in foreign.tokenizer:
                shutil.copyfile(file, folder / file.name)
    return dataclasses.replace(found, encoder=dataclasses.replace(found.encoder, model=model))
