"""The interface of every source of images, and the sources by name."""

import dataclasses
from typing import TYPE_CHECKING, Any, Protocol

from mim_jax import storage
from mim_jax.data.embedded import Embedded
from mim_jax.data.fields import Field
from mim_jax.data.folder import Folder
from mim_jax.data.tfds import Tfds
from mim_jax.errors import UserError

if TYPE_CHECKING:
    from mim_jax.data.config import DataConfig

# A new source is a file and a line here. Each entry is the frozen dataclass of a config section
# and has
#   open(data, *, split) -> Source, where `data` is the whole DataConfig; a UserError says what is
#     not there, where, and how to bring it;
#   assumed_fields() -> the fields that preflight takes for granted, told by the section alone.
SOURCES = {'embedded': Embedded, 'folder': Folder, 'tfds': Tfds}


class Source(Protocol):
    """Random access to items; picklable, so that workers can have it.

    `source[i]` is a dict with every field that `fields` states; see `Field` for what each holds. It
    is a function of i alone, and may be called from several threads. A file may be read only when
    its field is asked for (`dict.__missing__`).

    Either raises `mim_jax.data.decode.CorruptImage` for what cannot be read.

    It may have `fingerprint()`, a text that changes where items do, as far as that can be told
    without reading them: a run that is resumed on other items is refused. And `note`, a line for
    the start of a run on what became of the items, or None.
    """

    fields: tuple[Field, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> dict[str, Any]: ...

    def describe(self, index: int) -> str:
        """Names item `index` to a person: its path, or what stands for it."""
        ...


def make_source(config: 'DataConfig', *, split: str) -> Source:
    """The source that `config` names, its part `split`.

    Raises:
      UserError: the data is not there; says what, where, and how to bring it.
    """
    for field in dataclasses.fields(config.source):
        value = getattr(config.source, field.name)
        if storage.is_remote(value):
            raise UserError(
                f'config.data.source.{field.name} = {value}: data is read from file systems, which '
                'is all that ArrayRecord opens: copy it to every host (`gcloud storage cp -r`), or '
                'mount the bucket (gcsfuse).'
            )
    return config.source.open(config, split=split)
