"""DALL-E's visual tokens, which BEiT and CAE predict: a convolutional network says the code."""

import dataclasses
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from mim_jax.errors import UserError
from mim_jax.models.patches import patch_grid
from mim_jax.ranges import Count, Depth, Width
from mim_jax.targets.base import Target
from mim_jax.weights import fitting, native, reading

GROUPS = 4  # of blocks; behind all but the last the map is halved
STRIDE = 2 ** (GROUPS - 1)  # pixels per code
MARGIN = 0.1  # images in [0, 1] are brought to [0.1, 0.9]
FIELD = 'config.objective.target.weights'
MADE = (
    "it names a file of the tensors of OpenAI's DALL-E encoder, by their names there, such as "
    'PyTorch makes by `torch.save(torch.load("encoder.pkl", weights_only=False).state_dict(), '
    '"dalle.pt")` where the package `dall_e` is installed'
)


@dataclasses.dataclass(frozen=True)
class DalleTokenizer(Target):
    """The frozen encoder of DALL-E's discrete variational autoencoder.

    The target's tokens are its logits [B,N,num_codes] for the code of every patch; `codes` turns
    them, or group means of them, into numbers. Images are resized so that each patch of the student
    has a code, one for 8 pixels: 224 to 112 for patches of 16.

    weights: file of its parameters.
    width, blocks: of the first group of blocks, and blocks in a group.
    num_codes: how many codes there are.
    dtype: of the computation but for the last layer, which is in float32.

    Source: Ramesh et al. (ICML 2021), openai/DALL-E; BEiT (Bao et al., ICLR 2022) for its input.
    """

    weights: str | None = None
    width: Width = 256
    blocks: Depth = 2
    num_codes: Count = 8192
    dtype: Literal['float32', 'bfloat16'] = 'float32'

    def __post_init__(self):
        if self.width % 4:
            raise ValueError(f'width = {self.width}: it must be divisible by 4.')

    def check(self, encoder, inputs):
        if inputs.channels != 3:
            raise UserError(
                f"config.data.channels = {inputs.channels}: DALL-E's tokenizer needs images of 3."
            )

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes of the parameters: kernels `w` [out,in,side,side] and biases `b`, by their names
        with `/` for `.`.
        """
        shapes = {}

        def convolution(name, inputs, outputs, side):
            shapes[f'blocks/{name}/w'] = (outputs, inputs, side, side)
            shapes[f'blocks/{name}/b'] = (outputs,)

        convolution('input', 3, self.width, 7)
        inputs = self.width
        for group in range(1, GROUPS + 1):
            outputs = self.width * 2 ** (group - 1)
            for block in range(1, self.blocks + 1):
                name, hidden = f'group_{group}/block_{block}', outputs // 4
                if inputs != outputs:
                    convolution(f'{name}/id_path', inputs, outputs, 1)
                convolution(f'{name}/res_path/conv_1', inputs, hidden, 3)
                convolution(f'{name}/res_path/conv_2', hidden, hidden, 3)
                convolution(f'{name}/res_path/conv_3', hidden, hidden, 3)
                convolution(f'{name}/res_path/conv_4', hidden, outputs, 1)
                inputs = outputs
        convolution('output/conv', inputs, self.num_codes, 1)
        return shapes

    def init(self, key):
        """Parameters drawn at random as that code draws them: kernels of variance 1 / inputs."""
        shapes, params = self.shapes(), {}
        for own, (name, shape) in zip(
            jax.random.split(key, len(shapes)), shapes.items(), strict=True
        ):
            scale = np.prod(shape[1:]) ** -0.5 if len(shape) > 1 else 0.0
            params[name] = scale * jax.random.normal(own, shape)
        return native.unflatten(params)

    def load(self):
        if self.weights is None or not Path(self.weights).exists():
            absent = 'is not set' if self.weights is None else f'= {self.weights} does not exist'
            raise UserError(f'{FIELD} {absent}: {MADE}.')
        tensors = reading.read(self.weights).tensors
        params = native.unflatten({name.replace('.', '/'): x for name, x in tensors.items()})
        expected = jax.eval_shape(lambda: self.init(jax.random.key(0)))
        fitting.check_params(params, expected, what=f'{FIELD}: {self.weights}')
        return params

    def __call__(self, variables, images):
        grid = patch_grid(images.shape[1:3], self.encoder.patch_size)
        size = tuple(STRIDE * cells for cells in grid)
        if size != images.shape[1:3]:
            shape = (images.shape[0], *size, 3)
            images = jnp.clip(jax.image.resize(images, shape, 'lanczos3', antialias=True), 0.0, 1.0)
        found = logits(variables['teacher']['blocks'], images, dtype=self.dtype)
        return jax.lax.stop_gradient(found).reshape(images.shape[0], -1, self.num_codes)

    def codes(self, encodings, *, variables):
        """Numbers int32 [...] of the likeliest codes by logits [...,num_codes]."""
        return jnp.argmax(encodings, axis=-1).astype(jnp.int32)


def logits(params: dict[str, Any], images: jax.Array, *, dtype: str = 'float32') -> jax.Array:
    """Of the codes of images [B,H,W,3] in [0, 1], float32 [B,H/8,W/8,codes]."""
    groups = [params[f'group_{number}'] for number in range(1, GROUPS + 1)]
    gain = 1 / sum(len(group) for group in groups) ** 2
    x = (1 - 2 * MARGIN) * images.astype(dtype) + MARGIN
    x = convolved(params['input'], x)
    for number, group in enumerate(groups, 1):
        for block in range(1, len(group) + 1):
            part = group[f'block_{block}']
            y = x
            for layer in range(1, 5):
                y = convolved(part['res_path'][f'conv_{layer}'], jax.nn.relu(y))
            x = (convolved(part['id_path'], x) if 'id_path' in part else x) + gain * y
        if number < GROUPS:
            x = jax.lax.reduce_window(x, -jnp.inf, jax.lax.max, (1, 2, 2, 1), (1, 2, 2, 1), 'VALID')
    return convolved(params['output']['conv'], jax.nn.relu(x).astype(jnp.float32))


def convolved(params: dict[str, jax.Array], x: jax.Array) -> jax.Array:
    """x [B,H,W,C] by a kernel `w` [out,C,side,side], the map's size kept, plus the bias `b`."""
    kernel, bias = params['w'].astype(x.dtype), params['b'].astype(x.dtype)
    names = ('NHWC', 'OIHW', 'NHWC')
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), 'SAME', dimension_numbers=names) + bias
