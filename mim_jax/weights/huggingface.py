"""ViT, MAE, BEiT, data2vec-vision and DINOv2 as Hugging Face `transformers` names them."""

from mim_jax.errors import UserError
from mim_jax.weights import mapping
from mim_jax.weights.mapping import BLOCK
from mim_jax.weights.naming import HALF, IMAGENET, Naming, ratio, relative_count

LAYERS = r'^encoder\.layer\.(\d+)\.'
TABLE = 'relative_position_bias.relative_position_bias_table'
# Heads and decoders of the classes that hold these encoders.
LEFT_OUT = r'(^|\.)(pooler|classifier|lm_head|decoder|decode_head|auxiliary_head|fpn\d)\.'


def vit_rules(model, source=None):
    """The table of names of ViTModel and ViTMAEModel and ours."""
    rules = _embeddings(model)
    rules += _blocks(f'encoder.layer.{BLOCK}', heads=model.heads, bias=model.qkv_bias)
    return [*rules, *mapping.norm('final_norm', 'layernorm')]


def beit_rules(model, source=None):
    """The table of names of BeitModel and Data2VecVisionModel and ours."""
    block = f'encoder.layer.{BLOCK}'
    rules = _embeddings(model)
    rules += _blocks(block, heads=model.heads, bias=model.qkv_bias)
    if model.layer_scale is not None:
        for branch in (1, 2):
            rules.append(mapping.same(f'blocks/layer_scale{branch}', f'{block}.lambda_{branch}'))
    if model.relative_position in ('shared', 'both'):
        theirs = f'encoder.{TABLE}'
        rules.append(mapping.relative_position('relative_position', theirs, grid=model.grid))
    if model.relative_position in ('per_block', 'both'):
        theirs = f'{block}.attention.attention.{TABLE}'
        rules.append(mapping.relative_position('blocks/relative_position', theirs, grid=model.grid))
    return rules + (mapping.norm('final_norm', 'layernorm') if model.final_norm else [])


def dinov2_rules(model, source=None):
    """The table of names of Dinov2Model and Dinov2WithRegistersModel and ours."""
    block = f'encoder.layer.{BLOCK}'
    rules = _embeddings(model, mask_lead=1)
    if model.num_registers:
        rules.append(mapping.token('registers', 'embeddings.register_tokens', lead=1))
    rules += _blocks(
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


def mae_decoder_rules(heads):
    """The table of names of ViTMAEForPreTraining's decoder and ours (its positions are fixed)."""
    return [
        *mapping.linear('embed', 'decoder.decoder_embed'),
        mapping.token('mask_token', 'decoder.mask_token', lead=2),
        *_blocks(f'decoder.decoder_encoder.layer.{BLOCK}', heads=heads, bias='all'),
        *mapping.norm('norm', 'decoder.decoder_norm'),
        *mapping.linear('predict', 'decoder.decoder_pred'),
    ]


def _embeddings(model, *, mask_lead=2):
    rules = mapping.patches(
        'embeddings.patch_embeddings.projection', patch_size=model.patch_size, bias=True
    )
    rules.append(mapping.token('class_token', 'embeddings.cls_token', lead=2))
    if model.position == 'learned':
        rules.append(mapping.position('embeddings.position_embeddings', grid=model.grid, lead=1))
    if model.mask_token:
        rules.append(mapping.token('mask_token', 'embeddings.mask_token', lead=mask_lead))
    return rules


def _blocks(block, *, heads, bias, norms=('layernorm_before', 'layernorm_after'), mlp=None):
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


def _fields(source, *, fc1):
    """What all these encoders tell alike."""
    if source.has(r'^embeddings\.distillation_token$'):
        raise UserError('a distilled DeiT has a second class token, which is not supported')
    width, _, *patch_size = source.shape('embeddings.patch_embeddings.projection.weight', 4)
    fields = {
        'patch_size': tuple(patch_size),
        'width': width,
        'depth': source.count(LAYERS),
        'mlp_ratio': ratio(source.shape(f'encoder.layer.0.{fc1}.weight', 2)[0], width),
        'mask_token': source.has(r'^embeddings\.mask_token$'),
        'position': 'none',
    }
    table = 'embeddings.position_embeddings'
    if table in source.tensors:
        entries = source.shape(table, 3)[1] - 1
        fields.update(position='learned', grid=source.grid(entries, patch_size=patch_size))
    if not source.has(r'\.attention\.attention\.query\.bias$'):
        fields['qkv_bias'] = 'none'
    elif not source.has(r'\.attention\.attention\.key\.bias$'):
        fields['qkv_bias'] = 'qv'
    return fields


def _vit_fields(source):
    return _fields(source, fc1='intermediate.dense')


def _beit_fields(source):
    fields = _fields(source, fc1='intermediate.dense')
    shared, own = f'encoder.{TABLE}', f'encoder.layer.0.attention.attention.{TABLE}'
    has = shared in source.tensors, own in source.tensors
    if any(has):
        fields['grid'] = source.grid(
            source.shape(shared if has[0] else own, 2)[0],
            patch_size=fields['patch_size'],
            count=relative_count,
        )
    return {
        **fields,
        'relative_position': ('none', 'shared', 'per_block', 'both')[has[0] + 2 * has[1]],
        'layer_scale': source.stated.get('layer_scale', 0.1) if source.has(r'lambda_1$') else None,
        'final_norm': 'layernorm.weight' in source.tensors,
    }


def _dinov2_fields(source):
    if source.has(r'\.mlp\.weights_in\.'):
        raise UserError('the giant size has a SwiGLU feed-forward, which is not supported')
    registers = 'embeddings.register_tokens' in source.tensors
    return {
        **_fields(source, fc1='mlp.fc1'),
        'layer_scale': source.stated.get('layer_scale', 1.0),
        'num_registers': source.shape('embeddings.register_tokens', 3)[1] if registers else 0,
        'position_resize': 'bicubic_antialias' if registers else 'bicubic',
    }


def _vit_family(source):
    decoder = any(name.startswith('decoder.decoder_') for name in source.others)
    return 'mae' if decoder or source.stated.get('model_type') == 'vit_mae' else 'vit'


def _beit_family(source):
    data2vec = source.stated.get('model_type') == 'data2vec-vision'
    return 'data2vec' if data2vec or source.prefix.startswith('data2vec') else 'beit'


NAMINGS = (
    Naming(
        name='Hugging Face DINOv2',
        mark=r'^(.*?)encoder\.layer\.0\.layer_scale1\.lambda1$',
        fields=_dinov2_fields,
        rules=dinov2_rules,
        family=lambda source: 'dinov2',
        assumed={'activation': 'gelu', 'norm_eps': 1e-6},
        left_out=LEFT_OUT,
    ),
    Naming(
        name='Hugging Face BEiT and data2vec-vision',
        mark=r'^(.*?)encoder\.(layer\.0\.lambda_1|(layer\.0\..*)?relative_position_bias_table)$',
        fields=_beit_fields,
        rules=beit_rules,
        family=_beit_family,
        assumed={'activation': 'gelu', 'norm_eps': 1e-12},
        left_out=f'{LEFT_OUT}|^layernorm\\.',
        normalization=lambda source: HALF,
    ),
    Naming(
        name='Hugging Face ViT and ViT-MAE',
        mark=r'^(.*?)embeddings\.patch_embeddings\.projection\.weight$',
        fields=_vit_fields,
        rules=vit_rules,
        family=_vit_family,
        assumed={'activation': 'gelu', 'norm_eps': 1e-12},
        left_out=LEFT_OUT,
        normalization=lambda source: IMAGENET if _vit_family(source) == 'mae' else HALF,
    ),
)
