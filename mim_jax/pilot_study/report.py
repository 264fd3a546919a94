"""Figures as a summary and as a Markdown table; predictions as a picture."""

import numpy as np

from mim_jax.visualize import layout, pictures

# Blue and vermilion of Okabe and Ito: red-green blind readers tell them apart.
RIGHT = (0.0, 0.447, 0.698)
WRONG = (0.835, 0.369, 0.0)
# How much of the photo a certain prediction covers.
OPACITY = 0.8

NAMES = {
    'accuracy': '{by} accuracy of tokens',
    'probe_accuracy': 'linear probe, accuracy of tokens',
    'class_similarity': 'cosine of tokens to their class direction',
    'neighbour_agreement': '4-neighbours of one class ({by})',
    'pair_agreement': '… any two tokens of an image (chance level)',
    'neighbour_cosine': 'cosine of 4-neighbours',
    'pair_cosine': '… of any two tokens of an image (chance level)',
}
SHARES = ('accuracy', 'probe_accuracy', 'neighbour_agreement', 'pair_agreement')


def summary(figures: dict[str, np.ndarray]) -> dict[str, dict[str, float]]:
    """Means over the images of figures [2,T]; the standard error is that of the difference, whose
    two sides are measured on the same images.
    """
    return {name: _summary(values) for name, values in figures.items()}


def _summary(values):
    tokens, groups = values
    difference = groups - tokens
    error = difference.std(ddof=1) / np.sqrt(len(difference)) if len(difference) > 1 else np.nan
    return {
        'tokens': float(tokens.mean()),
        'groups': float(groups.mean()),
        'difference': float(difference.mean()),
        'standard_error': float(error),
    }


def table(found: dict[str, dict[str, float]], *, num_tokens: int, num_groups: int, by: str) -> str:
    """A Markdown table of a `summary`; `by` names what says a token's class."""
    lines = [
        f'| | {num_tokens} tokens | {num_groups} groups | difference |',
        '| --- | --- | --- | --- |',
    ]
    for name, title in NAMES.items():
        scale, unit = (100, ' %') if name in SHARES else (1, '')
        digits = 1 if name in SHARES else 3
        values = {k: scale * v for k, v in found[name].items()}
        lines.append(
            f'| {title.format(by=by)} | {values["tokens"]:.{digits}f}{unit} '
            f'| {values["groups"]:.{digits}f}{unit} '
            f'| {values["difference"]:+.{digits}f} ± {values["standard_error"]:.{digits}f} |'
        )
    return '\n'.join(lines) + '\n'


def shade(
    images: np.ndarray, probabilities: np.ndarray, labels: np.ndarray, *, grid: tuple[int, int]
) -> np.ndarray:
    """The images in grey under their tokens' predictions: RIGHT where a token says the image's
    class and WRONG where it says another, the stronger the surer; float32 [B,H,W,3].

    probabilities: [B,N,C]. Plain grey stays where no class has more than 1 / C.
    """
    best, chance = probabilities.max(axis=-1), 1 / probabilities.shape[-1]
    right = probabilities.argmax(axis=-1) == labels[:, None]
    photo = pictures.to_rgb(images)
    size = photo.shape[1:3]
    cover = OPACITY * np.clip((best - chance) / (1 - chance), 0, 1)
    cover = pictures.to_pixels(cover, grid=grid, size=size)[..., None]
    color = np.where(right[..., None], np.float32(RIGHT), np.float32(WRONG))
    color = pictures.to_pixels(color, grid=grid, size=size)
    grey = photo @ np.float32((0.299, 0.587, 0.114))
    return ((1 - cover) * grey[..., None] + cover * color).astype(np.float32)


def legend() -> list[layout.Key]:
    """What the colours of `shade` mean."""
    texts = {'the right class': RIGHT, 'another class': WRONG, 'unsure': (0.5, 0.5, 0.5)}
    return [layout.Key(text, np.full((1, 1, 3), color)) for text, color in texts.items()]
