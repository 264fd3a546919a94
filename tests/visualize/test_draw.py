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


def test_draw_gives_the_sheets_of_the_objective(unlaid):
    sheets = draw(Halves(), VARIABLES, IMAGES, step=1200, run='tiny')
    assert set(sheets) == {'reconstruction', 'groups', 'features'}
    assert len(sheets['reconstruction'].columns) == 4 and len(sheets['groups'].columns) == 3
    assert (sheets['reconstruction'].columns[2] == 0.25).all()
    for name, sheet in sheets.items():
        assert sheet.heading == f'tiny, step 1,200: {name}'


def test_draws_depend_on_the_seed_alone(unlaid):
    def hidden(**given):
        return draw(Halves(), VARIABLES, IMAGES, **given)['reconstruction'].columns[1]

    np.testing.assert_array_equal(hidden(step=1, seed=3), hidden(step=9, seed=3))
    first = hidden(seed=0)
    assert any((hidden(seed=s) != first).any() for s in range(1, 7))


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


def test_objectives_are_given_every_view_of_the_batch(unlaid):
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
    shown = sheets['second'].columns[1]
    assert shown.std() > 0.02 and np.ptp(shown, axis=-1).max() < 0.002


def test_write(tmp_path):
    sheet = np.zeros((4, 5, 3), np.uint8)
    sheet[..., 0] = 200  # red
    (path,) = write(tmp_path / 'pictures', {'groups': sheet}, step=500)
    assert path == tmp_path / 'pictures' / 'groups_000500.png'
    np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], sheet)
    (tmp_path / 'file').write_text('')
    with pytest.raises(UserError, match='cannot be written'):
        write(tmp_path / 'file', {'groups': sheet}, step=1)
