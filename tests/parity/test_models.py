"""The encoder and the MAE decoder against Hugging Face transformers, random weights, float32."""

import dataclasses
import os

import jax
import numpy as np
import pytest

os.environ.setdefault('TRANSFORMERS_VERBOSITY', 'error')
torch = pytest.importorskip('torch', reason='needs the extra "parity"')
transformers = pytest.importorskip('transformers', reason='needs the extra "parity"')

from mim_jax.inputs import Inputs  # noqa: E402
from mim_jax.losses import masked_mean, token_distance  # noqa: E402
from mim_jax.models import MAEDecoder, patchify  # noqa: E402
from mim_jax.targets import Teacher, network_tokens, normalize_patches  # noqa: E402
from mim_jax.weights import huggingface, mapping, native  # noqa: E402

SIZES = {
    'hidden_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'intermediate_size': 64,
    'image_size': 32,
    'patch_size': 8,
}
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(2, 32, 32, 3)).astype(np.float32)
MASK = RNG.random((2, 16)) < 0.5
TOLERANCE = 1e-4


def foreign(cls, config):
    """A model of theirs with random weights, none of them at its special initial value."""
    torch.manual_seed(0)
    model = cls(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if 'pos_embed' not in name and parameter.requires_grad:
                parameter.normal_(0.05, 0.15)
    return model


def fill_in_fixed_tables(mae):
    """Their sine-cosine tables, which a model made from a config alone leaves at zero."""
    for part in (*mae.modules(), *mae.parameters()):
        part._is_hf_initialized = False
    tokens = mae.vit.embeddings.cls_token.detach().clone(), mae.decoder.mask_token.detach().clone()
    mae.vit.embeddings.initialize_weights()
    mae.decoder.initialize_weights(mae.vit.embeddings.patch_embeddings.num_patches)
    mae.vit.embeddings.cls_token.data, mae.decoder.mask_token.data = tokens
    assert mae.vit.embeddings.position_embeddings.any() and mae.decoder.decoder_pos_embed.any()


def imported(model, folder):
    """Our ViT and its parameters, from the files that the model writes."""
    model.save_pretrained(folder)
    vit, params = huggingface.load_encoder(folder)
    return vit, params, native.read_tensors(folder / 'model.safetensors')[0]


def torch_images(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def run(model, images, **inputs):
    with torch.no_grad():
        return model(torch_images(images), output_hidden_states=True, **inputs)


def compare(ours, theirs):
    theirs = theirs.numpy() if hasattr(theirs, 'numpy') else theirs
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, atol=TOLERANCE)


def compare_blocks(vit, params, hidden_states, *, images=IMAGES, **options):
    """Patch tokens after every block; returns what the encoder says at the end."""
    layers = tuple(range(1, vit.depth + 1))
    encoded = jax.jit(lambda p, x: vit.apply({'params': p}, x, layers=layers, **options))(
        params, images
    )
    prefix = 1 + vit.num_registers
    for k in layers:
        compare(encoded.layers[k], hidden_states[k][:, prefix:])
    return encoded


def test_clip_image_tower_with_projection(tmp_path):
    config = transformers.CLIPVisionConfig(**SIZES, projection_dim=16)
    theirs = foreign(transformers.CLIPVisionModelWithProjection, config)
    vit, params, _ = imported(theirs, tmp_path)
    assert vit.pre_norm and vit.activation == 'quick_gelu' and not vit.patch_bias
    out = run(theirs, IMAGES)
    encoder = {k: v for k, v in params.items() if k != 'projection'}
    encoded = compare_blocks(vit, encoder, out.hidden_states)
    with torch.no_grad():
        normed = theirs.vision_model.post_layernorm(out.last_hidden_state)
        projected = theirs.visual_projection(normed)
    compare(encoded.tokens, normed[:, 1:])
    compare(encoded.class_token @ params['projection']['kernel'], out.image_embeds)
    compare(network_tokens(params, IMAGES, model=vit), projected[:, 1:])


def test_an_imported_tower_is_a_teacher(tmp_path, capsys):
    from mim_jax.weights.__main__ import main

    config = transformers.CLIPVisionConfig(**SIZES, projection_dim=16)
    theirs = foreign(transformers.CLIPVisionModelWithProjection, config)
    vit, params, _ = imported(theirs, tmp_path)
    out = tmp_path / 'clip.safetensors'
    assert main(['import', str(tmp_path), f'--out={out}']) == 0
    assert 'quick_gelu' in capsys.readouterr().out
    teacher = Teacher(weights=str(out), model=vit, projection=16)
    loaded = teacher.load(Inputs((32, 32), 3, (0.5,) * 3, (0.5,) * 3))
    for name, value in native.flatten(params).items():
        np.testing.assert_array_equal(native.flatten(loaded)[name], value)


def test_clip_on_a_larger_and_not_square_image(tmp_path):
    theirs = foreign(transformers.CLIPVisionModel, transformers.CLIPVisionConfig(**SIZES))
    vit, params, _ = imported(theirs, tmp_path)
    images = RNG.normal(size=(1, 40, 56, 3)).astype(np.float32)
    out = run(theirs, images, interpolate_pos_encoding=True)
    compare_blocks(vit, params, out.hidden_states, images=images)


def test_masked_autoencoder_and_its_loss(tmp_path):
    config = transformers.ViTMAEConfig(
        **SIZES,
        decoder_hidden_size=16,
        decoder_num_hidden_layers=2,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=64,
        norm_pix_loss=True,
        mask_ratio=0.75,
    )
    theirs = foreign(transformers.ViTMAEForPreTraining, config)
    fill_in_fixed_tables(theirs)
    vit, params, tensors = imported(theirs, tmp_path)
    assert vit.position == 'sincos'  # recognised: the file's table is ours
    noise = RNG.random((2, 16)).astype(np.float32)
    out = run(theirs, IMAGES, noise=torch.from_numpy(noise))
    visible = np.sort(np.argsort(noise, axis=1)[:, :4], axis=1)

    decoder = MAEDecoder(width=16, depth=2, heads=2, norm_eps=config.layer_norm_eps)
    rules = huggingface.mae_decoder_rules(heads=2)
    decoder_params, _ = mapping.read(tensors, rules, depth=2, what='decoder')

    @jax.jit
    def predict(params, images, visible):
        encoded = vit.apply({'params': params}, images, visible_ids=visible)
        return decoder.apply(
            {'params': decoder_params},
            encoded.tokens,
            visible_ids=visible,
            grid=(4, 4),
            features=192,
            class_token=encoded.class_token,
        )

    prediction = predict(params, IMAGES, visible)
    compare(prediction, out.logits)
    mask = np.ones((2, 16), bool)
    np.put_along_axis(mask, visible, False, axis=1)
    np.testing.assert_array_equal(mask, out.mask.numpy().astype(bool))
    target = normalize_patches(patchify(IMAGES, patch_size=(8, 8)))
    loss = masked_mean(token_distance(prediction, target, distance='l2'), mask)
    np.testing.assert_allclose(loss, out.loss.item(), rtol=1e-5)


@pytest.mark.parametrize(('shared', 'own'), [(True, False), (False, True)])
def test_beit_with_either_relative_position_bias(shared, own, tmp_path):
    config = transformers.BeitConfig(
        **SIZES,
        use_mask_token=True,
        use_shared_relative_position_bias=shared,
        use_relative_position_bias=own,
        layer_scale_init_value=0.1,
        use_mean_pooling=own,
    )
    theirs = foreign(transformers.BeitModel, config)
    vit, params, _ = imported(theirs, tmp_path)
    assert vit.relative_position == ('shared' if shared else 'per_block')
    assert vit.qkv_bias == 'qv' and vit.final_norm == (not own)
    out = run(theirs, IMAGES, bool_masked_pos=torch.from_numpy(MASK))
    encoded = compare_blocks(vit, params, out.hidden_states, mask=MASK)
    compare(encoded.tokens, out.last_hidden_state[:, 1:])
    compare(encoded.class_token, out.last_hidden_state[:, 0])


def test_dinov2_with_registers(tmp_path):
    sizes = {k: v for k, v in SIZES.items() if k != 'intermediate_size'}
    config = transformers.Dinov2WithRegistersConfig(**sizes, mlp_ratio=2, num_register_tokens=3)
    theirs = foreign(transformers.Dinov2WithRegistersModel, config)
    vit, params, _ = imported(theirs, tmp_path)
    assert vit.num_registers == 3 and vit.layer_scale is not None
    for shape in ((32, 32), (48, 24)):  # a larger grid, then one that is larger and smaller
        images = RNG.normal(size=(2, *shape, 3)).astype(np.float32)
        out = run(theirs, images)
        encoded = compare_blocks(vit, params, out.hidden_states, images=images)
        compare(encoded.tokens, out.last_hidden_state[:, 4:])
        compare(encoded.registers, out.last_hidden_state[:, 1:4])
        compare(encoded.class_token, out.last_hidden_state[:, 0])


def test_simmim_loss_and_its_gradient(tmp_path):
    config = transformers.ViTConfig(**SIZES, encoder_stride=8)
    theirs = foreign(transformers.ViTForMaskedImageModeling, config)
    vit, params, tensors = imported(theirs, tmp_path)
    out = theirs(
        torch_images(IMAGES), bool_masked_pos=torch.from_numpy(MASK), output_hidden_states=True
    )
    hidden = [state.detach() for state in out.hidden_states]
    compare_blocks(vit, params, hidden, mask=MASK)
    # Their 1x1 convolution and pixel shuffle put channels before the pixels of a patch.
    kernel = tensors['decoder.0.weight'].reshape(3, 64, 32).transpose(2, 1, 0).reshape(32, 192)
    bias = tensors['decoder.0.bias'].reshape(3, 64).T.reshape(192)

    def loss(params):
        tokens = vit.apply({'params': params}, IMAGES, mask=MASK).tokens
        target = patchify(IMAGES, patch_size=(8, 8))
        return masked_mean(token_distance(tokens @ kernel + bias, target, distance='l1'), MASK)

    value, gradient = jax.jit(jax.value_and_grad(loss))(params)
    np.testing.assert_allclose(value, out.loss.item(), rtol=1e-5)
    out.loss.backward()
    state = {name: p.grad for name, p in theirs.named_parameters() if p.grad is not None}
    patch = state['vit.embeddings.patch_embeddings.projection.weight'].numpy()
    expected = patch.transpose(2, 3, 1, 0).reshape(192, 32)
    compare(gradient['patch_embed']['kernel'], expected)
    compare(gradient['mask_token'], state['vit.embeddings.mask_token'].numpy().reshape(-1))


@pytest.mark.parametrize('kind', ['vit', 'beit', 'clip'])
def test_what_is_read_is_written_back_identically(kind, tmp_path):
    classes = {
        'vit': (transformers.ViTModel, transformers.ViTConfig),
        'beit': (transformers.BeitModel, transformers.BeitConfig),
        'clip': (transformers.CLIPVisionModel, transformers.CLIPVisionConfig),
    }
    cls, config = classes[kind]
    theirs = foreign(cls, config(**SIZES))
    vit, params, tensors = imported(theirs, tmp_path)
    model_type = {'clip': 'clip_vision_model'}.get(kind, kind)
    prefix = huggingface.prefix_of(tensors)
    rules = huggingface.encoder_rules(vit, model_type, prefix)
    written = mapping.write(params, rules, depth=vit.depth)
    kept = {n: t for n, t in tensors.items() if not n.startswith('pooler.')}
    assert written.keys() == kept.keys()
    for name, tensor in kept.items():
        np.testing.assert_array_equal(written[name], tensor, err_msg=name)


def test_wrong_files_are_told_in_one_sentence(tmp_path):
    from mim_jax.errors import UserError

    theirs = foreign(transformers.ViTModel, transformers.ViTConfig(**SIZES))
    vit, _, tensors = imported(theirs, tmp_path)
    config = {**SIZES, 'model_type': 'vit'}
    with pytest.raises(UserError, match="model type 'resnet' is none of"):
        huggingface.encoder(tensors, {**config, 'model_type': 'resnet'})
    with pytest.raises(UserError, match='unexpected: extra'):
        huggingface.encoder({**tensors, 'extra': np.zeros(1)}, config)
    lacking = {n: t for n, t in tensors.items() if 'layer.2' not in n}
    with pytest.raises(UserError, match=r'missing: encoder.layer.2.* more'):
        huggingface.encoder(lacking, config)
    assert dataclasses.asdict(vit)['depth'] == 3
