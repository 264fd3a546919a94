"""Features of a run in Python: nearest neighbours, tokens of a block, where the class token looks.

    python docs/examples/features.py [WORKDIR, FOLDER or FILE of an encoder]

without an argument after the quick start, `python -m mim_jax.main --config=configs/quickstart.py`.
Cells (# %%) run one by one in an editor that knows them.
"""

# %% An encoder, and some scenes of digits that it has not seen.
import sys

import numpy as np

import mim_jax
from mim_jax.data.embedded import EmbeddedScenes

encoder = mim_jax.load(sys.argv[1] if len(sys.argv) > 1 else 'runs/quickstart')
print(encoder)

scenes = EmbeddedScenes(split='test', size=(48, 48), num_test=256)
items = [scenes[i] for i in range(len(scenes))]
images = np.stack([item['image'] for item in items])
labels = np.array([item['label'] for item in items])

# %% One feature per image: how often is the most similar scene one of the same digit?
features = encoder.features(images)
features /= np.linalg.norm(features, axis=1, keepdims=True)
similarity = features @ features.T
np.fill_diagonal(similarity, -np.inf)
nearest = similarity.argmax(axis=1)
same = (labels[nearest] == labels).mean()
print(f'the nearest of {len(images) - 1} other scenes shows the same digit: {100 * same:.1f} %')

# %% The tokens after every block: how alike are those of one image?
blocks = tuple(range(1, encoder.model.depth + 1))
encoded = encoder(images, layers=blocks)
for block in blocks:
    tokens = encoded.layers[block].tokens
    tokens = tokens / np.linalg.norm(tokens, axis=-1, keepdims=True)
    alike = np.einsum('bnd,bmd->b', tokens, tokens).mean() / tokens.shape[1] ** 2
    print(f'block {block}: mean cosine similarity of two tokens {alike:.2f}')

# %% Does the class token of the last block look at the digit?
attention = encoder(images, attention=blocks[-1:]).attention[blocks[-1]]  # [B, heads, N]
p, q = encoder.model.patch_size
masks = np.stack([item['mask'] for item in items]).astype(np.float32)
masks = masks.reshape(len(masks), 48 // p, p, 48 // q, q).mean(axis=(2, 4)).reshape(len(masks), -1)
weights = attention / attention.sum(axis=-1, keepdims=True)
on_digit = (weights * masks[:, None]).sum(axis=-1).mean(axis=0)
print(f'attention on the digit, head by head: {np.round(on_digit, 3)}')
print(f'share of the image that the digit covers: {masks.mean():.3f}')
