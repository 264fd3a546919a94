"""What an item of a source holds, stated before anything is read."""

import dataclasses
from collections.abc import Iterable

KINDS = ('image', 'map', 'value')
# The number in a map of classes that stands for no class; what lies beyond the image has it too.
UNLABELLED = 255


@dataclasses.dataclass(frozen=True)
class Field:
    """One entry of an item `source[i]`, which is a dict by the names of its source's fields.

    name: the entry's key; by custom `image` is the picture, `other` the second one of a pair,
      `label` the class.
    kind: 'image', bytes of an encoded file or uint8 [H,W] or [H,W,C]; 'map', bytes of an encoded
      file of one channel or an integer array [H,W], one number per pixel; 'value', a number or an
      array.
    shape: of a value.
    dtype: in which a value or a map is delivered, as NumPy names it; images are uint8.
    num_classes: numbers are 0..num_classes-1, in a value or a map of classes; in a map 255 stands
      for no class.
    reduce_zero_label: of a map of classes, as an item holds it: 0 stands for no class and k for
      class k - 1 (ADE20K). Views have the classes.
    names: of the classes by their numbers, where the source tells them. They make no difference to
      what a batch is, and fields that differ in nothing else are equal.
    """

    name: str
    kind: str
    shape: tuple[int, ...] = ()
    dtype: str = 'int32'
    num_classes: int | None = None
    reduce_zero_label: bool = False
    names: tuple[str, ...] | None = dataclasses.field(default=None, compare=False, repr=False)

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f'kind is {self.kind!r}, must be one of {", ".join(KINDS)}')
        if self.reduce_zero_label and self.num_classes is None:
            raise ValueError('reduce_zero_label needs the number of classes that are left')

    @property
    def plural(self) -> str:
        """The key under which a batch holds a value of each item: `label` gives `labels`."""
        return f'{self.name}s'


def image_fields(num_classes: int | None = None) -> tuple[Field, ...]:
    """Those of plain images: `image`, and with a number of classes `label`."""
    image = Field('image', 'image')
    return (image,) if num_classes is None else (image, label_field(num_classes))


def label_field(num_classes: int, names: Iterable[str] | None = None) -> Field:
    """The class of an image, one number."""
    names = None if names is None else tuple(names)
    return Field('label', 'value', num_classes=num_classes, names=names)


def find(fields: Iterable[Field], name: str) -> Field | None:
    """The field of that name."""
    return next((field for field in fields if field.name == name), None)


def num_classes(fields: Iterable[Field]) -> int | None:
    """How many classes the field `label` knows; None without one class per image."""
    label = find(fields, 'label')
    return label.num_classes if label is not None and label.shape == () else None
