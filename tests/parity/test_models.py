"""The encoder and the MAE decoder against Hugging Face transformers, random weights, float32."""

import importlib.util
import os
from pathlib import Path

import jax
import numpy as np
import pytest

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
torch = pytest.importorskip('torch', reason='needs the extra "parity"')
transformers = pytest.importorskip('transformers', reason='needs the extra "parity"')

from mim_jax.losses import L1, L2, masked_mean  # noqa: E402
from mim_jax.models import MAEDecoder, patchify  # noqa: E402
from mim_jax.targets import network_tokens, normalize_patches  # noqa: E402
from mim_jax.weights import huggingface, mapping, native  # noqa: E402

_spec = importlib.util.spec_from_file_location('foreign', Path(__file__).parent / 'foreign.py')
foreign = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(foreign)

SIZES = {'small': foreign.SMALL, 'larger': foreign.LARGER}
IMAGES = foreign.images(32, 32)
MASK = foreign.RNG.random((2, 16)) < 0.5


def dinov2(sizes, **more):
    sizes = {k: v for k, v in sizes.items() if k != 'intermediate_size'}
    cls = transformers.Dinov2WithRegistersConfig if more else transformers.Dinov2Config
    return cls(**sizes, mlp_ratio=2, **more)


def beit(sizes, **more):
    return transformers.BeitConfig(**sizes, use_mean_pooling=False, **more)


ENCODERS = {
    'clip': (transformers.CLIPVisionModel, lambda s: transformers.CLIPVisionConfig(**s)),
    'vit': (transformers.ViTModel, lambda s: transformers.ViTConfig(**s)),
    'beit shared': (
        transformers.BeitModel,
        lambda s: beit(s, use_shared_relative_position_bias=True),
    ),
    'beit per block': (
        transformers.BeitModel,
        lambda s: beit(s, use_relative_position_bias=True, use_absolute_position_embeddings=True),
    ),
    'data2vec': (
        transformers.Data2VecVisionModel,
        lambda s: transformers.Data2VecVisionConfig(
            **s, use_relative_position_bias=True, use_shared_relative_position_bias=True
        ),
    ),
    'dinov2': (transformers.Dinov2Model, dinov2),
    'dinov2 with registers': (
        transformers.Dinov2WithRegistersModel,
        lambda s: dinov2(s, num_register_tokens=3),
    ),
}


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('kind', ENCODERS)
def test_every_token_of_every_block(kind, size, tmp_path):
    cls, config = ENCODERS[kind]
    theirs = foreign.made(cls, config(SIZES[size]))
    vit, params = foreign.imported(theirs, tmp_path)
    side = SIZES[size]['image_size']
    # The table's own grid, then one that is longer and shorter: the tables are interpolated.
    for height, width in ((side, side), (side + 16, side - 8)):
        images = foreign.images(height, width)
        resized = height != width and kind in ('clip', 'vit')
        options = {'interpolate_pos_encoding': True} if resized else {}
        out = foreign.run(theirs, images, **options)
        encoded = foreign.compare_blocks(vit, params, out.hidden_states, images=images)
        last = out.last_hidden_state
        if kind == 'clip':  # it leaves the norm to its pooled output
            last = theirs.post_layernorm(last)
        foreign.compare_end(vit, encoded, last)


def test_clips_projection(tmp_path):
    config = transformers.CLIPVisionConfig(**foreign.SMALL, projection_dim=16)
    theirs = foreign.made(transformers.CLIPVisionModelWithProjection, config)
    vit, params = foreign.imported(theirs, tmp_path)
    out = foreign.run(theirs, IMAGES)
    encoded = foreign.compare_blocks(vit, params, out.hidden_states, images=IMAGES)
    foreign.compare(encoded.class_token @ params['projection']['kernel'], out.image_embeds)
    normed = theirs.vision_model.post_layernorm(out.last_hidden_state)
    projected = theirs.visual_projection(normed)[:, 1:]
    foreign.compare(network_tokens(params, IMAGES, model=vit), projected)


@pytest.mark.parametrize('shared', [True, False])
def test_a_mask_and_no_final_norm(shared, tmp_path):
    config = transformers.BeitConfig(
        **foreign.SMALL,
        use_mask_token=True,
        use_shared_relative_position_bias=shared,
        use_relative_position_bias=not shared,
        use_mean_pooling=True,
    )
    theirs = foreign.made(transformers.BeitModel, config)
    vit, params = foreign.imported(theirs, tmp_path)
    assert vit.relative_position == ('shared' if shared else 'per_block')
    assert vit.qkv_bias == 'qv' and not vit.final_norm
    out = foreign.run(theirs, IMAGES, bool_masked_pos=torch.from_numpy(MASK))
    encoded = foreign.compare_blocks(vit, params, out.hidden_states, images=IMAGES, mask=MASK)
    foreign.compare_end(vit, encoded, out.last_hidden_state)


def fill_in_fixed_tables(mae):
    """Their sine-cosine tables, which a model made from a config alone leaves at zero."""
    for part in (*mae.modules(), *mae.parameters()):
        part._is_hf_initialized = False
    tokens = mae.vit.embeddings.cls_token.detach().clone(), mae.decoder.mask_token.detach().clone()
    mae.vit.embeddings.initialize_weights()
    mae.decoder.initialize_weights(mae.vit.embeddings.patch_embeddings.num_patches)
    mae.vit.embeddings.cls_token.data, mae.decoder.mask_token.data = tokens
    assert mae.vit.embeddings.position_embeddings.any() and mae.decoder.decoder_pos_embed.any()


@pytest.mark.parametrize('size', SIZES)
def test_masked_autoencoder_and_its_loss(size, tmp_path):
    sizes = SIZES[size]
    config = transformers.ViTMAEConfig(
        **sizes,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        norm_pix_loss=True,
        mask_ratio=0.75,
    )
    theirs = foreign.made(transformers.ViTMAEForPreTraining, config)
    fill_in_fixed_tables(theirs)
    vit, params = foreign.imported(theirs, tmp_path)
    assert vit.position == 'sincos'  # recognised: the file's table is ours
    grid, patch = vit.grid, vit.patch_size
    images = foreign.images(*2 * (sizes['image_size'],))
    num_tokens = grid[0] * grid[1]
    noise = foreign.RNG.random((2, num_tokens)).astype(np.float32)
    out = foreign.run(theirs, images, noise=torch.from_numpy(noise))
    visible = np.sort(np.argsort(noise, axis=1)[:, : num_tokens // 4], axis=1)

    decoder = MAEDecoder(width=16, depth=2, heads=2, norm_eps=config.layer_norm_eps)
    tensors = native.read_tensors(tmp_path / 'theirs' / 'model.safetensors')[0]
    decoder_params = mapping.read(tensors, huggingface.mae_decoder_rules(heads=2), depth=2)

    @jax.jit
    def predict(params, images, visible):
        encoded = vit.apply({'params': params}, images, visible_ids=visible)
        return decoder.apply(
            {'params': decoder_params},
            encoded.tokens,
            visible_ids=visible,
            grid=grid,
            features=3 * patch[0] * patch[1],
            class_token=encoded.class_token,
        )

    prediction = predict(params, images, visible)
    foreign.compare(prediction, out.logits)
    mask = np.ones((2, num_tokens), bool)
    np.put_along_axis(mask, visible, False, axis=1)
    np.testing.assert_array_equal(mask, out.mask.numpy().astype(bool))
    target = normalize_patches(patchify(images, patch_size=patch))
    loss = masked_mean(L2()(prediction, target), mask)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)


def test_simmim_loss_and_its_gradient(tmp_path):
    config = transformers.ViTConfig(**foreign.SMALL, encoder_stride=8)
    theirs = foreign.made(transformers.ViTForMaskedImageModeling, config)
    vit, params = foreign.imported(theirs, tmp_path)
    tensors = native.read_tensors(tmp_path / 'theirs' / 'model.safetensors')[0]
    out = theirs(
        foreign.to_torch(IMAGES), bool_masked_pos=torch.from_numpy(MASK), output_hidden_states=True
    )
    foreign.compare_blocks(vit, params, out.hidden_states, images=IMAGES, mask=MASK)
    # Their 1x1 convolution and pixel shuffle put channels before the pixels of a patch.
    kernel = tensors['decoder.0.weight'].reshape(3, 64, 32).transpose(2, 1, 0).reshape(32, 192)
    bias = tensors['decoder.0.bias'].reshape(3, 64).T.reshape(192)

    def loss(params):
        tokens = vit.apply({'params': params}, IMAGES, mask=MASK).tokens
        target = patchify(IMAGES, patch_size=(8, 8))
        return masked_mean(L1()(tokens @ kernel + bias, target), MASK)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, out.loss.item(), rtol=1e-5)
    out.loss.backward()
    state = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    patch = state['vit.embeddings.patch_embeddings.projection.weight'].numpy()
    expected = patch.transpose(2, 3, 1, 0).reshape(192, 32)
    foreign.compare(gradient['patch_embed']['kernel'], expected)
    foreign.compare(gradient['mask_token'], state['vit.embeddings.mask_token'].reshape(-1))
    first = np.stack([state[f'vit.layers.{i}.mlp.fc1.weight'].numpy().T for i in range(vit.depth)])
    foreign.compare(gradient['blocks']['mlp']['fc1']['kernel'], first)
