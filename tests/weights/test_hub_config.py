"""Configuration files of other people, which may hold anything."""

import pytest

from mim_jax.errors import UserError
from mim_jax.weights import hub_config


def test_what_is_stated_is_taken():
    config = {'model_type': 'vit', 'num_attention_heads': 6, 'image_size': [224, 192]}
    found = hub_config.stated(config)
    assert (found['heads'], found['image_size']) == (6, (224, 192))
    assert hub_config.stated({'model_type': 'vit', 'image_size': 224})['image_size'] == (224, 224)
    pretrained = {'input_size': [3, 224, 192], 'mean': [0.5, 0.5, 0.5]}
    found = hub_config.stated({'architecture': 'vit_x', 'pretrained_cfg': pretrained})
    assert (found['image_size'], found['mean']) == ((224, 192), (0.5, 0.5, 0.5))
    vision = {'width': 1280, 'head_width': 80, 'image_size': 224}
    assert hub_config.stated({'model_cfg': {'vision_cfg': vision}})['heads'] == 16


@pytest.mark.parametrize(
    ('config', 'said'),
    [
        ({'model_type': 'vit', 'num_attention_heads': 'x'}, "heads = 'x': expected int"),
        ({'model_type': 'vit', 'num_attention_heads': 0}, 'heads = 0: must be at least 1'),
        ({'model_type': 'vit', 'num_attention_heads': 1e30}, 'heads = 1e.30: expected int'),
        ({'model_type': 'vit', 'layer_norm_eps': float('nan')}, 'norm_eps = nan: must be a finite'),
        ({'model_type': 'vit', 'image_size': {}}, 'image_size = {}: expected a tuple of int'),
        ({'model_type': 'vit', 'hidden_act': ['gelu']}, 'activation = .*: expected str'),
        ({'model_type': 'clip', 'vision_config': 3}, 'vision_config = 3, and no object'),
        ({'model_cfg': []}, 'model_cfg = .., and no object'),
        ({'model_cfg': {'vision_cfg': {'width': 1, 'head_width': 0}}}, 'head_width = 0'),
        ({'architecture': 3}, 'architecture = 3: expected str'),
        ({'architecture': 'vit', 'pretrained_cfg': {'input_size': 'x'}}, "input_size = 'x'"),
        ({'architecture': 'vit', 'pretrained_cfg': {'std': [1, 0, 1]}}, 'std = .*above 0'),
    ],
)
def test_what_cannot_be_is_one_sentence(config, said):
    with pytest.raises(UserError, match=said):
        hub_config.stated(config)


def test_a_kind_of_model_that_is_no_text_says_nothing():
    assert hub_config.stated({'model_type': ['vit']}) == {}
