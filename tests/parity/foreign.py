"""Models of `transformers` with random weights, their files, and how their numbers are compared."""

import jax
import numpy as np
import torch

from mim_jax.weights import encoders, importing

TOLERANCE = 1e-4
SMALL = {
    'hidden_size': 32,
    'num_hidden_layers': 3,
    'num_attention_heads': 4,
    'intermediate_size': 64,
    'image_size': 32,
    'patch_size': 8,
}
LARGER = {
    'hidden_size': 48,
    'num_hidden_layers': 2,
    'num_attention_heads': 3,
    'intermediate_size': 96,
    'image_size': 40,
    'patch_size': 4,
}
RNG = np.random.default_rng(0)


def images(height, width, *, count=2):
    """Images [count,height,width,3], float32."""
    return RNG.normal(size=(count, height, width, 3)).astype(np.float32)


def made(cls, config, **options):
    """A model of theirs with random weights, none of them at its special initial value."""
    torch.manual_seed(0)
    return randomised(cls(config, **options))


def randomised(model):
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad and 'pos_embed' not in name:
                parameter.normal_(0.05, 0.15)
    return model.eval()


def imported(model, folder):
    """(ViT, params) that the import makes of the files that the model writes."""
    model.save_pretrained(folder / 'theirs')
    return read(folder / 'theirs', folder / 'ours')


def read(source, out, **options):
    """(ViT, params) that the import of `source` writes to the folder `out`."""
    found = importing.import_(source, out, **options)
    return found.encoder.model, encoders.load_encoder(out)[1]


def to_torch(images):
    return torch.from_numpy(images.transpose(0, 3, 1, 2).copy())


def run(model, images, **inputs):
    with torch.no_grad():
        return model(to_torch(images), output_hidden_states=True, **inputs)


def compare(ours, theirs):
    theirs = theirs.detach().numpy() if hasattr(theirs, 'detach') else np.asarray(theirs)
    scale = max(1.0, np.abs(theirs).max())
    np.testing.assert_allclose(np.asarray(ours) / scale, theirs / scale, atol=TOLERANCE)


def compare_blocks(vit, params, hidden_states, *, images, **options):
    """All patch tokens after every block; returns what the encoder says at the end."""
    layers = tuple(range(1, vit.depth + 1))
    params = {name: value for name, value in params.items() if name != 'projection'}
    encoded = jax.jit(lambda p, x: vit.apply({'params': p}, x, layers=layers, **options))(
        params, images
    )
    prefix = vit.class_token + vit.num_registers
    for k in layers:
        compare(encoded.layers[k].tokens, hidden_states[k][:, prefix:])
    return encoded


def compare_end(vit, encoded, last_hidden_state):
    """Class token, registers and patch tokens after the last block and norm."""
    prefix = 1 + vit.num_registers
    compare(encoded.class_token, last_hidden_state[:, 0])
    if vit.num_registers:
        compare(encoded.registers, last_hidden_state[:, 1:prefix])
    compare(encoded.tokens, last_hidden_state[:, prefix:])
