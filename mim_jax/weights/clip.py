"""CLIP: image and text towers in OpenAI's naming (open_clip's too) and in Hugging Face's."""

import dataclasses
import re
from collections.abc import Callable

import jax

from mim_jax.errors import UserError
from mim_jax.models.text import TextTower
from mim_jax.weights import mapping, native
from mim_jax.weights.mapping import BLOCK
from mim_jax.weights.naming import CLIP, Naming, Source, default_heads, ratio

# Where CLIP's own files keep whole models: counters that say what shapes say too.
OPENAI_LEFT_OUT = r'^(.*\.)?(logit_scale|logit_bias|input_resolution|context_length|vocab_size)$'


def huggingface_rules(model, source=None):
    """The table of names of CLIPVisionModelWithProjection and ours."""
    inner = '' if source and not source.has(r'^vision_model\.') else 'vision_model.'
    block = f'{inner}encoder.layers.{BLOCK}'
    rules = [
        *mapping.patches(
            f'{inner}embeddings.patch_embedding', patch_size=model.patch_size, bias=False
        ),
        mapping.same('class_token', f'{inner}embeddings.class_embedding'),
        mapping.position(f'{inner}embeddings.position_embedding.weight', grid=model.grid, lead=0),
        *mapping.norm('pre_norm', f'{inner}pre_layrnorm'),
        *_huggingface_blocks(block, heads=model.heads),
        *mapping.norm('final_norm', f'{inner}post_layernorm'),
    ]
    if source and source.has(r'^visual_projection\.'):
        rules.append(mapping.transposed('projection/kernel', 'visual_projection.weight'))
    return rules


def _huggingface_blocks(block, *, heads):
    attention = f'{block}.self_attn'
    return [
        *mapping.norm('blocks/norm1', f'{block}.layer_norm1'),
        *mapping.split_attention(
            'blocks/attention',
            *(f'{attention}.{n}' for n in ('q_proj', 'k_proj', 'v_proj', 'out_proj')),
            heads=heads,
            bias='all',
        ),
        *mapping.norm('blocks/norm2', f'{block}.layer_norm2'),
        *mapping.linear('blocks/mlp/fc1', f'{block}.mlp.fc1'),
        *mapping.linear('blocks/mlp/fc2', f'{block}.mlp.fc2'),
    ]


def openai_rules(model, source=None):
    """The table of names of OpenAI's VisionTransformer and ours."""
    rules = [
        *mapping.patches('conv1', patch_size=model.patch_size, bias=False),
        mapping.same('class_token', 'class_embedding'),
        mapping.position('positional_embedding', grid=model.grid, lead=0),
        *mapping.norm('pre_norm', 'ln_pre'),
        *_openai_blocks(heads=model.heads),
        *mapping.norm('final_norm', 'ln_post'),
    ]
    return rules + [mapping.same('projection/kernel', 'proj')] * (
        source is None or 'proj' in source.tensors
    )


def _openai_blocks(*, heads):
    block = f'transformer.resblocks.{BLOCK}'
    return [
        *mapping.norm('blocks/norm1', f'{block}.ln_1'),
        *mapping.fused_attention(
            'blocks/attention',
            f'{block}.attn.in_proj_weight',
            [f'{block}.attn.in_proj_bias'],
            f'{block}.attn.out_proj',
            heads=heads,
        ),
        *mapping.norm('blocks/norm2', f'{block}.ln_2'),
        *mapping.linear('blocks/mlp/fc1', f'{block}.mlp.c_fc'),
        *mapping.linear('blocks/mlp/fc2', f'{block}.mlp.c_proj'),
    ]


def _fields(source, *, patch, table, fc1, depth):
    """The image tower's fields from the names of its patch kernel, position table and MLP."""
    width, _, *patch_size = source.shape(patch, 4)
    return {
        'patch_size': tuple(patch_size),
        'width': width,
        'depth': source.count(depth),
        'mlp_ratio': ratio(source.shape(fc1, 2)[0], width),
        'grid': source.grid(source.shape(table, 2)[0] - 1, patch_size=patch_size),
        'position': 'learned',
        'patch_bias': False,
        'pre_norm': True,
    }


def _huggingface_fields(source):
    inner = 'vision_model.' if source.has(r'^vision_model\.') else ''
    return _fields(
        source,
        patch=f'{inner}embeddings.patch_embedding.weight',
        table=f'{inner}embeddings.position_embedding.weight',
        fc1=f'{inner}encoder.layers.0.mlp.fc1.weight',
        depth=rf'^{inner}encoder\.layers\.(\d+)\.',
    )


def _openai_fields(source):
    return _fields(
        source,
        patch='conv1.weight',
        table='positional_embedding',
        fc1='transformer.resblocks.0.mlp.c_fc.weight',
        depth=r'^transformer\.resblocks\.(\d+)\.',
    )


def _width(name, axis):
    return lambda source: source.shape(name, 2)[axis] if name in source.tensors else None


NAMINGS = (
    Naming(
        name='Hugging Face CLIP',
        mark=r'^(.*?)(?:vision_model\.)?pre_layrnorm\.weight$',
        fields=_huggingface_fields,
        rules=huggingface_rules,
        family=lambda source: 'clip',
        assumed={'activation': 'quick_gelu', 'norm_eps': 1e-5},
        left_out=r'(^|\.)logit_scale$',
        projection=_width('visual_projection.weight', 0),
        normalization=lambda source: CLIP,
    ),
    Naming(
        name='OpenAI CLIP and open_clip',
        mark=r'^(.*?visual\.)transformer\.resblocks\.0\.ln_1\.weight$',
        fields=_openai_fields,
        rules=openai_rules,
        family=lambda source: 'clip',
        assumed={'activation': 'quick_gelu', 'norm_eps': 1e-5},
        left_out=OPENAI_LEFT_OUT,
        projection=_width('proj', 1),
        normalization=lambda source: CLIP,
    ),
)


@dataclasses.dataclass(frozen=True)
class TextNaming:
    """A project's names of CLIP's text tower; `mark` as in `Naming`."""

    mark: str
    fields: dict[str, str]  # names of the tensors that tell the tower's sizes
    depth: str
    projection_axis: int
    rules: Callable


def _huggingface_text(tower):
    return [
        mapping.same('token_embedding', 'text_model.embeddings.token_embedding.weight'),
        mapping.same('position', 'text_model.embeddings.position_embedding.weight'),
        *_huggingface_blocks(f'text_model.encoder.layers.{BLOCK}', heads=tower.heads),
        *mapping.norm('final_norm', 'text_model.final_layer_norm'),
        mapping.transposed('projection/kernel', 'text_projection.weight'),
    ]


def _openai_text(tower):
    return [
        mapping.same('token_embedding', 'token_embedding.weight'),
        mapping.same('position', 'positional_embedding'),
        *_openai_blocks(heads=tower.heads),
        *mapping.norm('final_norm', 'ln_final'),
        mapping.same('projection/kernel', 'text_projection'),
    ]


TEXT_NAMINGS = (
    TextNaming(
        mark=r'^(.*?)text_model\.embeddings\.token_embedding\.weight$',
        fields={
            'tokens': 'text_model.embeddings.token_embedding.weight',
            'position': 'text_model.embeddings.position_embedding.weight',
            'fc1': 'text_model.encoder.layers.0.mlp.fc1.weight',
            'projection': 'text_projection.weight',
        },
        depth=r'^text_model\.encoder\.layers\.(\d+)\.',
        projection_axis=0,
        rules=_huggingface_text,
    ),
    TextNaming(
        mark=r'^(.*?)token_embedding\.weight$',
        fields={
            'tokens': 'token_embedding.weight',
            'position': 'positional_embedding',
            'fc1': 'transformer.resblocks.0.mlp.c_fc.weight',
            'projection': 'text_projection',
        },
        depth=r'^transformer\.resblocks\.(\d+)\.',
        projection_axis=1,
        rules=_openai_text,
    ),
)


@dataclasses.dataclass(frozen=True)
class RecognisedText:
    """A text tower found in a file, not yet read; `needed` are the shapes it needs by full name."""

    tower: TextTower
    source: Source
    rules: tuple
    needed: dict[str, tuple[int, ...]]

    def read(self):
        """The tower's params."""
        return mapping.read(self.source.tensors, self.rules, depth=self.tower.depth)


def recognise_text(tensors, *, stated, activation, what) -> RecognisedText | None:
    """The text tower in `tensors` by name, if there is one.

    stated: what a config says of it in our words; activation: the image tower's, which it shares
    where no config says otherwise. Raises UserError for a tower that lacks what tells its sizes.
    """
    for naming in TEXT_NAMINGS:
        found = next((m for m in (re.search(naming.mark, name) for name in tensors) if m), None)
        if found:
            break
    else:
        return None
    source = Source.of(tensors, prefix=found[1], stated=stated)
    try:
        shapes = {field: source.shape(name, 2) for field, name in naming.fields.items()}
        vocabulary, width = shapes['tokens']
        fields = dict(
            vocabulary=vocabulary,
            context=shapes['position'][0],
            width=width,
            depth=source.count(naming.depth),
            heads=stated.get('heads') or default_heads(width),
            mlp_ratio=ratio(shapes['fc1'][0], width),
            projection=shapes['projection'][naming.projection_axis],
            activation=stated.get('activation', activation),
            norm_eps=stated.get('norm_eps', 1e-5),
            end_token=stated.get('end_token'),
        )
        tower = native.built(TextTower, fields, what='it')
    except (UserError, ValueError) as error:
        raise UserError(f'{what}, text tower: {error}') from error
    rules = tuple(naming.rules(tower))
    params = jax.eval_shape(lambda: tower.init(jax.random.key(0)))['params']
    ours = {name: value.shape for name, value in native.flatten(params).items()}
    needed = mapping.needed_shapes(ours, rules, depth=tower.depth)
    return RecognisedText(
        tower, source, rules, {source.prefix + name: shape for name, shape in needed.items()}
    )
