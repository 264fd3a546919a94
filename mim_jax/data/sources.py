"""The interface every source of images has, and the choice among sources."""

from typing import Any, Protocol

from mim_jax.data.config import DataConfig


class Source(Protocol):
    """Random access to labelled or unlabelled images; picklable, so that workers can have it.

    `source[i]` is a dict with
      image: bytes of an encoded file, or uint8 [H,W] or [H,W,C];
      label: int, only if the source has labels;
      mask: uint8 [H,W], 1 on the labelled object, only if the source has masks.
    It is a function of i alone, and may be called from several threads.
    """

    num_classes: int | None

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def describe(self, index: int) -> str:
        """Names item `index` to a person: its path, or what stands for it."""
        ...


def make_source(config: DataConfig, *, split: str) -> Source:
    """The source that `config` names, its part `split`.

    Raises:
      UserError: the data is not there; says what, where, and how to bring it.
    """
    if config.source == 'embedded':
        from mim_jax.data.embedded import EmbeddedScenes

        return EmbeddedScenes(
            split=split,
            size=tuple(config.image_size),
            num_train=config.embedded.num_train,
            num_test=config.embedded.num_test,
        )
    if config.source == 'folder':
        from mim_jax.data.folder import ImageFolder

        return ImageFolder(config.path, split=split)
    from mim_jax.data.tfds import TfdsImages

    return TfdsImages(config.dataset, data_dir=config.path, split=split)
