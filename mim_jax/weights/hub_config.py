"""What the configuration files beside published weights say, in our words."""

from mim_jax import kinds
from mim_jax.errors import UserError
from mim_jax.ranges import AnyNumber, NotNegative, Number, Positive, Side, Width
from mim_jax.weights.naming import ACTIVATIONS

# What each fact must be; files of other people's hold anything.
FACTS = {
    'heads': Width,
    'norm_eps': Positive,
    'activation': str,
    'image_size': tuple[Side, ...],
    'layer_scale': NotNegative,
    'mean': tuple[AnyNumber, ...],
    'std': tuple[Positive, ...],
    'model_type': str,
    'end_token': Number,
}

# A config.json of transformers leaves out what is a class's default.
_DEFAULTS = {'heads': 12, 'norm_eps': 1e-12, 'activation': 'gelu'}
_CLIP = {'heads': 12, 'norm_eps': 1e-5, 'activation': 'quick_gelu'}
DEFAULTS = {
    'clip': _CLIP,
    'clip_vision_model': _CLIP,
    'dinov2': {**_DEFAULTS, 'norm_eps': 1e-6},
    'dinov2_with_registers': {**_DEFAULTS, 'norm_eps': 1e-6},
    **dict.fromkeys(('vit', 'vit_mae', 'beit', 'data2vec-vision', 'deit'), _DEFAULTS),
}
CLIP_TEXT = {'heads': 8, 'norm_eps': 1e-5, 'activation': 'quick_gelu', 'end_token': 49407}


def stated(config) -> dict:
    """Facts of the image encoder that `config` (config.json, nested dicts) states.

    Keys: heads, norm_eps, activation, image_size (height, width), layer_scale, mean, std,
    model_type (transformers' word); those alone that are stated. Understood are the configs of
    transformers, timm's and open_clip's hub files; another says nothing.
    """
    if 'model_cfg' in config:
        model = _inner(config, 'model_cfg')
        vision = _inner(model, 'vision_cfg')
        facts = {
            **_open_clip(model, vision),
            'image_size': vision.get('image_size'),
            **_normalization(_inner(config, 'preprocess_cfg')),
        }
        widths = [_fact(vision, name, Width) for name in ('width', 'head_width')]
        if None not in widths:
            facts['heads'] = widths[0] // widths[1]
    elif 'architecture' in config:
        architecture = _fact(config, 'architecture', str) or ''
        # Older files lack the level.
        pretrained = _inner(config, 'pretrained_cfg') if 'pretrained_cfg' in config else config
        options = _inner(config, 'model_args')
        size = _fact(pretrained, 'input_size', tuple[Side, ...]) or ()
        facts = {
            'heads': options.get('num_heads'),
            'norm_eps': 1e-5 if '_clip_' in architecture else 1e-6,
            'activation': options.get('act_layer') or _timm_activation(architecture),
            'image_size': options.get('img_size') or size[1:] or None,
            'layer_scale': options.get('init_values'),
            **_normalization(pretrained),
        }
    elif config.get('model_type') in tuple(DEFAULTS):
        vision = {**config, **_inner(config, 'vision_config')}
        defaults = DEFAULTS[config['model_type']]
        facts = {
            'heads': vision.get('num_attention_heads', defaults['heads']),
            'norm_eps': vision.get('layer_norm_eps', defaults['norm_eps']),
            'activation': vision.get('hidden_act', defaults['activation']),
            'image_size': vision.get('image_size', 224),
            'layer_scale': vision.get('layer_scale_init_value', vision.get('layerscale_value')),
            'model_type': config['model_type'],
        }
    else:
        return {}
    return _checked(facts)


def stated_text(config) -> dict:
    """Facts of the text tower that `config` states: heads, norm_eps, activation, end_token."""
    if 'model_cfg' in config:
        model = _inner(config, 'model_cfg')
        text = _inner(model, 'text_cfg')
        return _checked({'heads': text.get('heads'), **_open_clip(model, text)})
    if config.get('model_type') not in ('clip', 'clip_text_model'):
        return {}
    text = {**config, **_inner(config, 'text_config')}
    end = text.get('eos_token_id', CLIP_TEXT['end_token'])
    facts = {
        'heads': text.get('num_attention_heads', CLIP_TEXT['heads']),
        'norm_eps': text.get('layer_norm_eps', CLIP_TEXT['norm_eps']),
        'activation': text.get('hidden_act', CLIP_TEXT['activation']),
        # Files older than transformers 4.31 state 2, which no sentence of CLIP ends with.
        'end_token': None if end == 2 else end,
    }
    return _checked(facts)


def normalization(preprocessor) -> dict:
    """mean and std that a preprocessor_config.json states."""
    return _checked({'mean': preprocessor.get('image_mean'), 'std': preprocessor.get('image_std')})


def _open_clip(model, tower):
    quick = model.get('quick_gelu', False)
    return {'activation': 'quick_gelu' if quick else 'gelu', 'norm_eps': tower.get('norm_eps')}


def _timm_activation(architecture):
    return 'quick_gelu' if '_quickgelu_' in architecture else 'gelu'


def _normalization(config):
    return {'mean': config.get('mean'), 'std': config.get('std')}


def _inner(config, name) -> dict:
    """The object of that name inside one, {} where there is none."""
    found = config.get(name)
    if found is not None and not isinstance(found, dict):
        raise UserError(f'the config states {name} = {kinds.shown(repr(found))}, and no object')
    return found or {}


def _fact(config, name, kind):
    found = config.get(name)
    return found if found is None else kinds.checked(found, kind, f'the config states {name}')


def _checked(facts):
    facts = {
        name: _fact(facts, name, FACTS[name])
        for name, value in facts.items()
        if value is not None and value != []
    }
    if facts.get('activation', 'gelu') not in ACTIVATIONS:
        stated = kinds.shown(repr(facts['activation']))
        raise UserError(
            f'the config states the activation {stated}, which is none of {", ".join(ACTIVATIONS)}'
        )
    if 'activation' in facts:
        facts['activation'] = ACTIVATIONS[facts['activation']]
    if 'image_size' in facts:
        size = facts['image_size']
        facts['image_size'] = size * 2 if len(size) == 1 else size
        if len(facts['image_size']) != 2:
            del facts['image_size']
    return facts
