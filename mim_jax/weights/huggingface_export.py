"""Export to `transformers`: safetensors under its names, with the config.json of its class."""

from mim_jax.weights import clip, exporting, huggingface, mapping

ACTIVATIONS = {'gelu': 'gelu', 'gelu_tanh': 'gelu_pytorch_tanh', 'quick_gelu': 'quick_gelu'}


def export(encoder, out, *, dtype='float32') -> tuple[str, list[str]]:
    """Writes the new folder `out`, which a class of transformers reads.

    Returns the class's name, and the names of our parameters that it has no place for.

    Raises UserError for an encoder that none of its classes can hold.
    """
    encoder = exporting.located(encoder)
    kind = kind_of(encoder.model)
    exporting.refuse_unless(_limits(encoder, kind), whose='transformers')
    model, params = encoder.model, encoder.params
    none = 'none' if model.qkv_bias == 'none' else 'all'
    model, params = exporting.adapted(
        model,
        params,
        biases={'beit': 'qv', 'clip_vision_model': 'all'}.get(kind, none),
        position='none' if kind == 'beit' and model.position == 'none' else 'learned',
        patch_bias=kind != 'clip_vision_model',
        mask_token={
            'beit': model.mask_token,
            'dinov2': model.mask_token,
            'dinov2_with_registers': True,  # its class always has one
        }.get(kind, False),
    )
    rules = {
        'clip_vision_model': clip.huggingface_rules,
        'beit': huggingface.beit_rules,
        'vit': huggingface.vit_rules,
    }.get(kind, huggingface.dinov2_rules)(model)
    if kind == 'clip_vision_model' and encoder.projection is not None:
        rules.append(mapping.transposed('projection/kernel', 'visual_projection.weight'))
    config = _config(encoder, model, kind)
    files = {'config.json': config}
    if encoder.mean is not None:
        files['preprocessor_config.json'] = _preprocessor(encoder)
    exporting.write_folder(out, params, rules=rules, files=files, dtype=dtype)
    return config['architectures'][0], exporting.left_out(encoder, rules)


def kind_of(model) -> str:
    """The model type of transformers that computes what `model` computes."""
    if model.pre_norm:
        return 'clip_vision_model'
    if model.num_registers:
        return 'dinov2_with_registers'
    if model.relative_position != 'none' or model.qkv_bias == 'qv' or not model.final_norm:
        return 'beit'
    return 'vit' if model.layer_scale is None else 'dinov2'


def pooler_is_fresh(model) -> bool:
    """Whether `pooler_output` of its class comes out of weights that are no part of ours."""
    kind = kind_of(model)
    return kind == 'vit' or (kind == 'beit' and not model.final_norm)


def _limits(encoder, kind):
    """(whether it holds, what is asked) of an encoder that is to be written as `kind`."""
    model, grid = encoder.model, encoder.model.grid
    plain = (model.relative_position == 'none', 'no relative position bias')
    square = (grid[0] == grid[1], 'a square grid of patches')
    limits = [
        (model.patch_size[0] == model.patch_size[1], 'square patches'),
        (model.class_token, 'a class token'),
        (model.condition_width is None, 'no condition_width'),
    ]
    if kind == 'clip_vision_model':
        limits += [
            plain,
            square,
            (not model.patch_bias, 'no patch bias'),
            (model.layer_scale is None, 'no layer scale'),
            (model.num_registers == 0, 'no registers'),
        ]
    if kind.startswith('dinov2'):
        whole = float(model.mlp_ratio).is_integer()
        limits += [
            plain,
            square,
            (whole, 'a whole mlp_ratio'),
            (model.layer_scale is not None, 'layer scale'),
        ]
    if kind != 'beit':
        limits.append((model.final_norm, 'a final norm'))
    elif model.relative_position != 'none':
        limits.append(square)  # of another table its BeitModel takes rows for columns
    return [(holds, f'{asked} in its class for {kind}') for holds, asked in limits]


def _config(encoder, model, kind):
    architecture = {
        'clip_vision_model': 'CLIPVisionModel'
        if encoder.projection is None
        else 'CLIPVisionModelWithProjection',
        'beit': 'BeitModel',
        'dinov2': 'Dinov2Model',
        'dinov2_with_registers': 'Dinov2WithRegistersModel',
        'vit': 'ViTModel',
    }[kind]
    height, width = encoder.image_size
    config = {
        'architectures': [architecture],
        'model_type': kind,
        'hidden_size': model.width,
        'num_hidden_layers': model.depth,
        'num_attention_heads': model.heads,
        'hidden_act': ACTIVATIONS[model.activation],
        'layer_norm_eps': model.norm_eps,
        'image_size': height if height == width else [height, width],
        'patch_size': model.patch_size[0],
        'num_channels': encoder.channels,
    }
    if kind.startswith('dinov2'):
        config['mlp_ratio'] = int(model.mlp_ratio)
        config['layerscale_value'] = model.layer_scale
        config['use_mask_token'] = model.mask_token
    else:
        config['intermediate_size'] = int(model.width * model.mlp_ratio)
    if kind == 'dinov2_with_registers':
        config['num_register_tokens'] = model.num_registers
    if kind in ('vit', 'dinov2', 'dinov2_with_registers'):
        config['qkv_bias'] = model.qkv_bias != 'none'
    if kind == 'beit':
        config.update(
            use_mask_token=model.mask_token,
            use_absolute_position_embeddings=model.position == 'learned',
            use_relative_position_bias=model.relative_position in ('per_block', 'both'),
            use_shared_relative_position_bias=model.relative_position in ('shared', 'both'),
            layer_scale_init_value=model.layer_scale or 0.0,
            use_mean_pooling=not model.final_norm,
        )
    if kind == 'clip_vision_model' and encoder.projection is not None:
        config['projection_dim'] = encoder.projection
    return config


def _preprocessor(encoder):
    height, width = encoder.image_size
    return {
        'image_processor_type': 'ViTImageProcessor',
        'do_resize': True,
        'size': {'height': height, 'width': width},
        'resample': 3,
        'do_rescale': True,
        'do_normalize': True,
        'image_mean': list(encoder.mean),
        'image_std': list(encoder.std),
    }
