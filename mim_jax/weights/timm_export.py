"""Export to timm: safetensors under its names, with the config.json of its hub."""

from mim_jax.weights import exporting, timm
from mim_jax.weights.naming import IMAGENET


def export(encoder, out, *, dtype='float32') -> tuple[str, list[str]]:
    """Writes the new folder `out`, which timm reads as the model `local-dir:OUT`.

    Returns the architecture, and the names of our parameters that it has no place for.

    Raises UserError for an encoder that neither VisionTransformer nor Beit of timm can hold.
    """
    encoder = exporting.located(encoder)
    beit = timm.is_beit(encoder.model)
    exporting.refuse_unless(_limits(encoder, beit), whose='timm')
    model, params = exporting.adapted(
        encoder.model,
        {name: value for name, value in encoder.params.items() if name != 'projection'},
        biases=('none' if encoder.model.qkv_bias == 'none' else 'qv' if beit else 'all'),
        position='none' if encoder.model.position == 'none' else 'learned',
        patch_bias=beit or not encoder.model.pre_norm,
        mask_token=False,
    )
    args = {
        'img_size': list(encoder.image_size),
        'patch_size': list(model.patch_size),
        'in_chans': encoder.channels,
        'embed_dim': model.width,
        'depth': model.depth,
        'num_heads': model.heads,
        'mlp_ratio': model.mlp_ratio,
        'qkv_bias': model.qkv_bias != 'none',
        'init_values': model.layer_scale,
        'global_pool': 'token' if model.class_token else '',
    }
    if beit:
        architecture = 'beit_base_patch16_224'
        args.update(
            use_abs_pos_emb=model.position == 'learned',
            use_rel_pos_bias=model.relative_position in ('per_block', 'both'),
            use_shared_rel_pos_bias=model.relative_position in ('shared', 'both'),
        )
    else:
        architecture = f'vit_base_patch16_{"clip_" if model.norm_eps == 1e-5 else ""}224'
        args.update(
            class_token=model.class_token,
            pos_embed='learn' if model.position == 'learned' else 'none',
            no_embed_class=model.num_registers > 0,
            reg_tokens=model.num_registers,
            pre_norm=model.pre_norm,
            final_norm=model.final_norm,
            act_layer=model.activation,
        )
    mean, std = (encoder.mean, encoder.std) if encoder.mean else IMAGENET
    config = {
        'architecture': architecture,
        'num_classes': 0,
        'num_features': model.width,
        'global_pool': args['global_pool'],
        'model_args': args,
        'pretrained_cfg': {
            'input_size': [encoder.channels, *encoder.image_size],
            'fixed_input_size': True,
            'interpolation': 'bicubic',
            'mean': list(mean),
            'std': list(std),
            'num_classes': 0,
            'pool_size': None,
            'first_conv': 'patch_embed.proj',
            'classifier': 'head',
        },
    }
    rules = timm.rules(model)
    exporting.write_folder(out, params, rules=rules, files={'config.json': config}, dtype=dtype)
    return architecture, exporting.left_out(encoder, rules)


def _limits(encoder, beit):
    model = encoder.model
    if beit:
        return [
            (model.class_token, 'a class token in its class Beit'),
            (model.num_registers == 0, 'no registers in its class Beit'),
            (not model.pre_norm, 'no norm before the blocks in its class Beit'),
            (model.final_norm, 'a final norm in its class Beit'),
            (model.activation == 'gelu', "activation 'gelu' in its class Beit"),
            (model.norm_eps <= 1e-6, 'norm_eps 1e-6 in its class Beit'),
            (model.condition_width is None, 'no condition_width in its class Beit'),
        ]
    return [
        (model.norm_eps <= 1e-6 or model.norm_eps == 1e-5, 'norm_eps 1e-6 or 1e-5'),
        (model.condition_width is None, 'no condition_width'),
        (
            not (model.pre_norm and model.patch_bias),
            'no patch bias with a norm before the blocks',
        ),
    ]
