"""Image encoders as Hugging Face `transformers` stores them: config.json and safetensors names."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np

from mim_jax.errors import UserError
from mim_jax.models.positions import sincos_table
from mim_jax.models.vit import ViT
from mim_jax.weights import mapping, native
from mim_jax.weights.mapping import BLOCK

ACTIVATIONS = {
    'gelu': 'gelu',
    'quick_gelu': 'quick_gelu',
    'gelu_new': 'gelu_tanh',
    'gelu_pytorch_tanh': 'gelu_tanh',
}
# What files hold beside the encoder: heads and buffers of other uses.
IGNORED = r'(^|\.)(pooler|classifier|lm_head|decoder|position_ids|text_model|text_projection|'
IGNORED += r'logit_scale)(\.|$)|^layernorm_pooled'


def load_encoder(directory):
    """(ViT, params) of a directory with config.json and model.safetensors.

    Understood are the model types of FAMILIES. Raises UserError for another family, and for names
    that are missing or unexpected.
    """
    directory = Path(directory)
    try:
        config = json.loads((directory / 'config.json').read_text(encoding='utf-8'))
    except (OSError, ValueError) as error:
        raise UserError(f'{directory}: config.json cannot be read ({error})') from error
    tensors, _ = native.read_tensors(directory / 'model.safetensors')
    return encoder(tensors, config, what=str(directory))


def encoder(tensors, config, *, what='weights'):
    """(ViT, params) from foreign `tensors` by name and the nested dict `config` (config.json)."""
    kind = config.get('model_type')
    if kind not in FAMILIES:
        raise UserError(f'{what}: model type {kind!r} is none of {", ".join(FAMILIES)}')
    config = {**config, **config.get('vision_config', {})}
    model = _fields(config, kind, tensors)
    prefix = prefix_of(tensors)
    rules = encoder_rules(model, kind, prefix)
    if 'visual_projection.weight' in tensors:
        rules.append(mapping.transposed('projection/kernel', 'visual_projection.weight'))
    params, used = mapping.read(tensors, rules, depth=model.depth, what=what)
    if model.position == 'learned' and _is_sincos(params['position'], model):
        model = dataclasses.replace(model, position='sincos')
        del params['position']
    unexpected = sorted(n for n in tensors if n not in used and not re.search(IGNORED, n))
    if unexpected:
        raise UserError(f'{what}: unexpected: {native.some(unexpected)}')
    return model, params


def encoder_rules(model, kind, prefix=''):
    """The table of names for `model` (a ViT) in the family `kind`, under `prefix`."""
    rules = FAMILIES[kind](model)
    return [mapping.prefixed(rule, prefix) for rule in rules]


def mae_decoder_rules(heads):
    """The table of names of ViTMAEForPreTraining's decoder and ours (its positions are fixed)."""
    block = f'decoder.decoder_encoder.layer.{BLOCK}'
    return [
        *mapping.linear('embed', 'decoder.decoder_embed'),
        mapping.token('mask_token', 'decoder.mask_token', lead=2),
        *_vit_block(block, heads=heads, bias='all'),
        *mapping.norm('norm', 'decoder.decoder_norm'),
        *mapping.linear('predict', 'decoder.decoder_pred'),
    ]


def _vit_block(block, *, heads, bias, norms=('layernorm_before', 'layernorm_after'), mlp=None):
    attention = f'{block}.attention'
    fc1, fc2 = mlp or ('intermediate.dense', 'output.dense')
    return [
        *mapping.norm('blocks/norm1', f'{block}.{norms[0]}'),
        *mapping.split_attention(
            'blocks/attention',
            *(f'{attention}.attention.{n}' for n in ('query', 'key', 'value')),
            f'{attention}.output.dense',
            heads=heads,
            bias=bias,
        ),
        *mapping.norm('blocks/norm2', f'{block}.{norms[1]}'),
        *mapping.linear('blocks/mlp/fc1', f'{block}.{fc1}'),
        *mapping.linear('blocks/mlp/fc2', f'{block}.{fc2}'),
    ]


def _embeddings(model):
    rules = mapping.patches(
        'embeddings.patch_embeddings.projection',
        patch_size=model.patch_size,
        bias=model.patch_bias,
    )
    rules.append(mapping.token('class_token', 'embeddings.cls_token', lead=2))
    if model.position == 'learned':
        rules.append(mapping.position('embeddings.position_embeddings', grid=model.grid, lead=1))
    return rules


def _vit(model):
    rules = _embeddings(model)
    if model.mask_token:
        rules.append(mapping.token('mask_token', 'embeddings.mask_token', lead=2))
    rules += _vit_block(f'encoder.layer.{BLOCK}', heads=model.heads, bias=model.qkv_bias)
    return [*rules, *mapping.norm('final_norm', 'layernorm')]


def _beit(model):
    block, flat = f'encoder.layer.{BLOCK}', 'relative_position_bias.relative_position_bias_table'
    rules = _embeddings(model)
    if model.mask_token:
        rules.append(mapping.token('mask_token', 'embeddings.mask_token', lead=2))
    rules += _vit_block(block, heads=model.heads, bias=model.qkv_bias)
    if model.layer_scale is not None:
        for branch in (1, 2):
            rules.append(mapping.same(f'blocks/layer_scale{branch}', f'{block}.lambda_{branch}'))
    if model.relative_position in ('shared', 'both'):
        theirs = f'encoder.{flat}'
        rules.append(mapping.relative_position('relative_position', theirs, grid=model.grid))
    if model.relative_position in ('per_block', 'both'):
        theirs = f'{block}.attention.attention.{flat}'
        rules.append(mapping.relative_position('blocks/relative_position', theirs, grid=model.grid))
    return rules + (mapping.norm('final_norm', 'layernorm') if model.final_norm else [])


def _dinov2(model):
    block = f'encoder.layer.{BLOCK}'
    rules = _embeddings(model)
    if model.mask_token:
        rules.append(mapping.token('mask_token', 'embeddings.mask_token', lead=1))
    if model.num_registers:
        rules.append(mapping.token('registers', 'embeddings.register_tokens', lead=1))
    rules += _vit_block(
        block,
        heads=model.heads,
        bias=model.qkv_bias,
        norms=('norm1', 'norm2'),
        mlp=('mlp.fc1', 'mlp.fc2'),
    )
    for branch in (1, 2):
        theirs = f'{block}.layer_scale{branch}.lambda1'
        rules.append(mapping.same(f'blocks/layer_scale{branch}', theirs))
    return [*rules, *mapping.norm('final_norm', 'layernorm')]


def _clip(model):
    block = f'encoder.layers.{BLOCK}'
    attention = f'{block}.self_attn'
    return [
        *mapping.patches(
            'embeddings.patch_embedding', patch_size=model.patch_size, bias=model.patch_bias
        ),
        mapping.same('class_token', 'embeddings.class_embedding'),
        mapping.position('embeddings.position_embedding.weight', grid=model.grid, lead=0),
        *mapping.norm('pre_norm', 'pre_layrnorm'),
        *mapping.norm('blocks/norm1', f'{block}.layer_norm1'),
        *mapping.split_attention(
            'blocks/attention',
            *(f'{attention}.{n}' for n in ('q_proj', 'k_proj', 'v_proj', 'out_proj')),
            heads=model.heads,
            bias='all',
        ),
        *mapping.norm('blocks/norm2', f'{block}.layer_norm2'),
        *mapping.linear('blocks/mlp/fc1', f'{block}.mlp.fc1'),
        *mapping.linear('blocks/mlp/fc2', f'{block}.mlp.fc2'),
        *mapping.norm('final_norm', 'post_layernorm'),
    ]


FAMILIES = {
    'clip': _clip,
    'clip_vision_model': _clip,
    'vit': _vit,
    'vit_mae': _vit,
    'beit': _beit,
    'data2vec-vision': _beit,
    'dinov2': _dinov2,
    'dinov2_with_registers': _dinov2,
}


def _fields(config, kind, tensors):
    """The ViT that config.json and the presence of optional tensors describe."""
    clip = FAMILIES[kind] is _clip
    width = config.get('hidden_size', 768)
    patch = _pair(config.get('patch_size', 32 if clip else 16))
    image = _pair(config.get('image_size', 224))
    hidden = config.get('intermediate_size', 4 * width)
    activation = config.get('hidden_act', 'quick_gelu' if clip else 'gelu')
    if activation not in ACTIVATIONS:
        raise UserError(f'activation {activation!r} is none of {", ".join(ACTIVATIONS)}')

    def has(pattern):
        return any(re.search(pattern, name) for name in tensors)

    fields = {
        'patch_size': patch,
        'width': width,
        'depth': config.get('num_hidden_layers', 12),
        'heads': config.get('num_attention_heads', 12),
        'mlp_ratio': hidden / width,
        'grid': (image[0] // patch[0], image[1] // patch[1]),
        'position': 'learned' if has(r'position_embedding') else 'none',
        'mask_token': has(r'(^|\.)embeddings\.mask_token$'),
        'activation': ACTIVATIONS[activation],
        'norm_eps': config.get('layer_norm_eps', 1e-5 if clip else 1e-12),
    }
    if clip:
        fields.update(patch_bias=False, pre_norm=True)
    elif FAMILIES[kind] is _beit:
        table = r'relative_position_bias_table$'
        shared, own = (
            has(rf'encoder\.relative_position_bias\.{table}'),
            has(rf'attention\..*{table}'),
        )
        fields.update(
            qkv_bias='qv',
            relative_position=('none', 'shared', 'per_block', 'both')[shared + 2 * own],
            layer_scale=config.get('layer_scale_init_value', 0.1) if has('lambda_1') else None,
            final_norm=has(r'(^|\.)(?<!pooler\.)layernorm\.weight$'),
        )
    elif FAMILIES[kind] is _dinov2:
        fields.update(
            mlp_ratio=float(config.get('mlp_ratio', 4)),
            layer_scale=float(config.get('layerscale_value', 1.0)),
            norm_eps=config.get('layer_norm_eps', 1e-6),
            num_registers=config.get('num_register_tokens', 0) if has('register_tokens') else 0,
            position_resize='bicubic_antialias' if has('register_tokens') else 'bicubic',
        )
        if config.get('use_swiglu_ffn'):
            raise UserError('DINOv2 with a SwiGLU feed-forward (the giant size) is not supported')
    if FAMILIES[kind] is not _beit and not config.get('qkv_bias', True):
        fields['qkv_bias'] = 'none'
    return ViT(**fields)


def prefix_of(tensors):
    """What stands before the encoder's own names in this file: '', 'vit.', 'vision_model.', …"""
    for name in sorted(tensors):
        found = re.search(r'^(.*?)embeddings\.patch_embedding(s\.projection)?\.weight$', name)
        if found:
            return found.group(1)
    return ''


def _is_sincos(position, model):
    table = np.asarray(position['patches'])
    return (
        model.width % 4 == 0
        and not np.any(position['class_token'])
        and np.allclose(table, sincos_table(table.shape[:2], model.width), atol=1e-5)
    )


def _pair(size):
    return tuple(size) if isinstance(size, (list, tuple)) else (size, size)
