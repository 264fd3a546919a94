"""The naming of timm's ViT, which DeiT, DINO, DINOv2, MAE, BEiT and data2vec-vision share."""

import dataclasses

from mim_jax.errors import UserError
from mim_jax.weights import mapping
from mim_jax.weights.mapping import BLOCK
from mim_jax.weights.naming import CLIP, HALF, IMAGENET, Naming, ratio, relative_count

TABLE = 'relative_position_bias_table'
# Heads, decoders and second branches of the programs that trained these encoders.
LEFT_OUT = (
    r'(^|\.)(head|head_dist|fc_norm|pre_logits|lm_head|decoder_\w+|cls_pt_layers|dino_head|'
    r'ibot_head|fpn\d)\.|(^|\.)(logit_scale|decoder_pos_embed)$'
)


def rules(model, source=None):
    """The table of names of this naming and ours.

    The projects differ in details, which `source` decides; without it they are timm's own.
    """
    inner = 'trunk.' if source and source.has(r'^trunk\.') else ''
    names = _names_for(model, source, inner)
    return [mapping.prefixed(rule, inner) for rule in _rules(model, names)]


@dataclasses.dataclass(frozen=True)
class _Names:
    """In what the projects differ."""

    class_row: bool  # whether the position table begins with the class token's
    registers: str
    scales: str
    mask_lead: int  # axes of 1 before the mask token


def _names_for(model, source, inner):
    """The names as in `source`, or timm's own."""
    if source is None:
        scales = 'gamma_{}' if is_beit(model) else 'ls{}.gamma'
        return _Names(model.class_token and not model.num_registers, 'reg_token', scales, 2)
    own = {n.removeprefix(inner): t.shape for n, t in source.tensors.items()}
    rows, columns = model.grid or (0, 0)
    return _Names(
        class_row='pos_embed' in own and own['pos_embed'][1] == rows * columns + 1,
        registers='reg_token' if 'reg_token' in own else 'register_tokens',
        scales='gamma_{}' if 'blocks.0.gamma_1' in own else 'ls{}.gamma',
        mask_lead=len(own['mask_token']) - 1 if 'mask_token' in own else 2,
    )


def _rules(model, names):
    block = f'blocks.{BLOCK}'
    result = mapping.patches('patch_embed.proj', patch_size=model.patch_size, bias=model.patch_bias)
    learned = model.position == 'learned'
    if learned:
        result.append(mapping.position('pos_embed', grid=model.grid, lead=1, first=names.class_row))
    if model.class_token and learned and not names.class_row:
        result.append(mapping.folded_class_token('cls_token', lead=2))
    elif model.class_token:
        result.append(mapping.token('class_token', 'cls_token', lead=2))
    if model.num_registers:
        result.append(mapping.token('registers', names.registers, lead=1))
    if model.mask_token:
        result.append(mapping.token('mask_token', 'mask_token', lead=names.mask_lead))
    if model.pre_norm:
        result += mapping.norm('pre_norm', 'norm_pre')
    biases = {
        'all': [f'{block}.attn.qkv.bias'],
        'qv': [f'{block}.attn.q_bias', f'{block}.attn.v_bias'],
        'none': [],
    }[model.qkv_bias]
    result += [
        *mapping.norm('blocks/norm1', f'{block}.norm1'),
        *mapping.fused_attention(
            'blocks/attention',
            f'{block}.attn.qkv.weight',
            biases,
            f'{block}.attn.proj',
            heads=model.heads,
        ),
        *mapping.norm('blocks/norm2', f'{block}.norm2'),
        *mapping.linear('blocks/mlp/fc1', f'{block}.mlp.fc1'),
        *mapping.linear('blocks/mlp/fc2', f'{block}.mlp.fc2'),
    ]
    if model.layer_scale is not None:
        for branch in (1, 2):
            theirs = f'{block}.{names.scales.format(branch)}'
            result.append(mapping.same(f'blocks/layer_scale{branch}', theirs))
    if model.relative_position in ('shared', 'both'):
        theirs = f'rel_pos_bias.{TABLE}'
        result.append(mapping.relative_position('relative_position', theirs, grid=model.grid))
    if model.relative_position in ('per_block', 'both'):
        theirs = f'{block}.attn.{TABLE}'
        result.append(
            mapping.relative_position('blocks/relative_position', theirs, grid=model.grid)
        )
    return result + (mapping.norm('final_norm', 'norm') if model.final_norm else [])


def is_beit(model) -> bool:
    """Whether timm holds this encoder in its class Beit, not in VisionTransformer."""
    if model.relative_position != 'none':
        return True
    plain = model.class_token and not model.num_registers and not model.pre_norm
    return model.qkv_bias == 'qv' and plain


def _fields(source):
    inner = 'trunk.' if source.has(r'^trunk\.') else ''

    def shape(name, axes):
        return source.shape(inner + name, axes)

    def has(name):
        return inner + name in source.tensors

    if has('dist_token'):
        raise UserError('a distilled DeiT has a second class token, which is not supported')
    width, _, *patch_size = shape('patch_embed.proj.weight', 4)
    if (
        has('blocks.0.mlp.w12.weight')
        or has('blocks.0.mlp.fc1_g.weight')
        or (shape('blocks.0.mlp.fc1.weight', 2)[0] == 2 * shape('blocks.0.mlp.fc2.weight', 2)[1])
    ):
        raise UserError('it has a gated (SwiGLU) feed-forward, which is not supported')
    fields = {
        'patch_size': tuple(patch_size),
        'width': width,
        'depth': source.count(rf'^{inner}blocks\.(\d+)\.'),
        'mlp_ratio': ratio(shape('blocks.0.mlp.fc1.weight', 2)[0], width),
        'class_token': has('cls_token'),
        'position': 'none',
        'mask_token': has('mask_token') and not has('decoder_embed.weight'),
        'patch_bias': has('patch_embed.proj.bias'),
        'pre_norm': has('norm_pre.weight'),
        'final_norm': has('norm.weight'),
    }
    if has('pos_embed'):
        fields.update(position='learned', grid=_grid(source, shape('pos_embed', 3)[1], fields))
    if has('blocks.0.attn.q_bias'):
        fields['qkv_bias'] = 'qv'
    elif not has('blocks.0.attn.qkv.bias'):
        fields['qkv_bias'] = 'none'
    if has('blocks.0.gamma_1') or has('blocks.0.ls1.gamma'):
        fields['layer_scale'] = source.stated.get('layer_scale', 1e-5)
    for name in ('reg_token', 'register_tokens'):
        if has(name):
            fields.update(num_registers=shape(name, 3)[1], position_resize='bicubic_antialias')
    shared, own = has(f'rel_pos_bias.{TABLE}'), has(f'blocks.0.attn.{TABLE}')
    if shared or own:
        table = f'rel_pos_bias.{TABLE}' if shared else f'blocks.0.attn.{TABLE}'
        fields['grid'] = source.grid(
            shape(table, 2)[0], patch_size=patch_size, count=relative_count
        )
        fields['relative_position'] = ('none', 'shared', 'per_block', 'both')[shared + 2 * own]
    return fields


def _grid(source, entries, fields):
    """The grid of a table with or without a row for the class token."""
    if fields['class_token']:
        try:
            return source.grid(entries - 1, patch_size=fields['patch_size'])
        except UserError:
            pass
    return source.grid(entries, patch_size=fields['patch_size'])


def _vit_family(source):
    return 'dino' if any('head.last_layer' in name for name in source.others) else 'vit'


def _scaled_family(source):
    """DeiT III has layer scale under the names of DINOv2, whose patches alone are 14 wide."""
    marks = source.has(r'^(mask_token|register_tokens|reg_token)$')
    return 'dinov2' if marks or source.shape('patch_embed.proj.weight', 4)[-1] == 14 else 'vit'


def _beit_normalization(source):
    """BEiT v2, known by its second branch, takes ImageNet's statistics; BEiT one half."""
    return IMAGENET if source.has(r'^cls_pt_layers\.') else HALF


def _projection(source):
    name = 'head.proj.weight'
    return source.shape(name, 2)[0] if source.has(r'^trunk\.') and name in source.tensors else None


def _clip_rules(model, source=None):
    projection = mapping.transposed('projection/kernel', 'head.proj.weight')
    return rules(model, source) + [projection] * (_projection(source) is not None)


_BLOCK = r'^((?:[a-z_]+\.)*?)blocks\.0\.'  # no number before: that would be a Swin's stage
_COMMON = {'fields': _fields, 'rules': rules}
NAMINGS = (
    Naming(
        name='CLIP in timm',
        mark=r'^(.*?)(?:trunk\.)?norm_pre\.weight$',
        family=lambda source: 'clip',
        assumed={'activation': 'gelu', 'norm_eps': 1e-5},
        left_out=LEFT_OUT,
        normalization=lambda source: CLIP,
        projection=_projection,
        fields=_fields,
        rules=_clip_rules,
    ),
    Naming(
        name='MAE',
        mark=r'^(.*?)decoder_embed\.weight$',
        family=lambda source: 'mae',
        assumed={'activation': 'gelu', 'norm_eps': 1e-6},
        left_out=rf'{LEFT_OUT}|(^|\.)mask_token$',  # its mask token enters the decoder
        **_COMMON,
    ),
    Naming(
        name='BEiT and data2vec-vision',
        mark=rf'{_BLOCK}(?:gamma_1|attn\.q_bias|attn\.{TABLE})$',
        family=lambda source: 'beit',
        assumed={'activation': 'gelu', 'norm_eps': 1e-6},
        left_out=LEFT_OUT,
        normalization=_beit_normalization,
        **_COMMON,
    ),
    Naming(
        name='DINOv2 and DeiT III',
        mark=rf'{_BLOCK}ls1\.gamma$',
        family=_scaled_family,
        assumed={'activation': 'gelu', 'norm_eps': 1e-6},
        left_out=LEFT_OUT,
        **_COMMON,
    ),
    Naming(
        name='timm ViT, DeiT, DINO and MAE encoders',
        mark=rf'{_BLOCK}attn\.qkv\.weight$',
        family=_vit_family,
        assumed={'activation': 'gelu', 'norm_eps': 1e-6},
        left_out=LEFT_OUT,
        **_COMMON,
    ),
)
