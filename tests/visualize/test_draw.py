import dataclasses
import types

import chex
import cv2
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mim_jax import panels
from mim_jax.data import Colors, Crop, View
from mim_jax.errors import UserError
from mim_jax.visualize import draw, write


@dataclasses.dataclass(frozen=True)
class Halves:
    """Hides the left half or, by a coin of the image's key, the right one; groups rows."""

    grid: tuple[int, int] = (4, 4)

    def pictures(self, variables, batch, key, step):
        chex.assert_type(batch['images'], jnp.float32)
        count = len(batch['images'])
        right = jax.vmap(jax.random.bernoulli)(batch['keys'])
        left = jnp.tile(jnp.arange(4) < 2, (count, 4))
        groups = jnp.tile(jnp.arange(16) // 4, (1, count, 1))
        mask = left ^ right[:, None]
        grey = batch['images'] * 0 + variables['params']['grey']
        return {
            'reconstruction': [panels.Mask(mask), panels.Image(grey), panels.Image(grey, mask)],
            'groups': [panels.Mask(mask), panels.Groups(groups[0], title='rows')],
        }

    def features(self, variables, images):
        return types.SimpleNamespace(tokens=images.reshape(len(images), 16, -1))


VARIABLES = {'params': {'grey': jnp.float32(0.25)}}
IMAGES = np.random.default_rng(0).integers(0, 256, (3, 16, 16, 3), dtype=np.uint8)


def test_draw_gives_the_sheets_of_the_objective():
    sheets = draw(Halves(), VARIABLES, IMAGES)
    assert set(sheets) == {'reconstruction', 'groups', 'features'}
    side, gap = 16 * 14, 5
    assert sheets['reconstruction'].shape[1] == 4 * (side + gap) + gap
    assert sheets['groups'].shape[1] == 3 * (side + gap) + gap
    rows = sheets['reconstruction'][-(3 * (side + gap)) :]
    third = rows[:side, 2 * (side + gap) + gap : 3 * (side + gap)]
    assert (third == 64).all()  # the reconstruction, 0.25 of 255


def test_draws_depend_on_the_seed_alone():
    first = draw(Halves(), VARIABLES, IMAGES, step=1, seed=3)
    again = draw(Halves(), VARIABLES, IMAGES, step=9, seed=3)
    np.testing.assert_array_equal(first['reconstruction'], again['reconstruction'])
    others = [draw(Halves(), VARIABLES, IMAGES, seed=s)['reconstruction'] for s in range(6)]
    assert any((other != first['reconstruction']).any() for other in others)


def test_variables_on_a_mesh_give_the_same_sheets():
    mesh = jax.make_mesh((4, 2), ('data', 'fsdp'), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    place = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    on_mesh = draw(Halves(), jax.device_put(VARIABLES, place), IMAGES, mesh=mesh)
    for name, sheet in draw(Halves(), VARIABLES, IMAGES).items():
        np.testing.assert_array_equal(on_mesh[name], sheet)


def test_an_objective_without_pictures_still_shows_features():
    @dataclasses.dataclass(frozen=True)
    class Plain(Halves):
        def pictures(self, variables, batch, key, step):
            return {}

    assert set(draw(Plain(), VARIABLES, IMAGES)) == {'features'}


def test_objectives_are_given_every_view_of_the_batch():
    plain = View(crop=Crop(), image_size=(16, 16))
    grey = dataclasses.replace(plain, like='images', colors=Colors(grey=1.0))
    views = {'images': plain, 'grey': grey, 'small': dataclasses.replace(plain, boxes=True)}
    batch = {'images': IMAGES, 'small': IMAGES[:, ::2, ::2], 'small_boxes': np.zeros((3, 4))}

    @dataclasses.dataclass(frozen=True)
    class ShowsGrey(Halves):
        def pictures(self, variables, batch, key, step):
            assert batch['small'].shape == (3, 8, 8, 3) and batch['small_flipped'].shape == (3,)
            return {'second': [panels.Image(batch['grey'])]}

    sheets = draw(ShowsGrey(), VARIABLES, batch, views=views)
    side, gap = 16 * 14, 5
    shown = sheets['second'][-side - gap : -gap, side + 2 * gap :][:, :side]
    assert shown.std() > 5 and np.ptp(shown, axis=2).max() == 0


def test_write(tmp_path):
    sheet = np.zeros((4, 5, 3), np.uint8)
    sheet[..., 0] = 200  # red
    (path,) = write(tmp_path / 'pictures', {'groups': sheet}, step=500)
    assert path == tmp_path / 'pictures' / 'groups_000500.png'
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], sheet)
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        write(tmp_path / 'file', {'groups': sheet}, step=1)
