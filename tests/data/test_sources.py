"""The registry of sources as a choice of the config."""

import pytest
from ml_collections import ConfigDict

from mim_jax import config as configs
from mim_jax.data import SOURCES, DataConfig, make_source
from mim_jax.data.folder import Folder
from mim_jax.data.tfds import Tfds
from mim_jax.errors import UserError


def changed(*assignments):
    section = configs.override(
        configs.written(DataConfig()).lock(), DataConfig, [a.split('=') for a in assignments]
    )
    return configs.build(DataConfig, section, path='data')


def test_a_source_and_its_fields_are_named_on_the_command_line():
    assert changed('source.path=DIR', 'source.name=folder').source == Folder(path='DIR')
    assert changed('source.name=tfds', 'source.dataset=x').source == Tfds(dataset='x')
    with pytest.raises(UserError, match='source.name=fodler: .* did you mean folder'):
        changed('source.name=fodler')
    with pytest.raises(
        UserError, match='source.path: .* one of source.name=folder and of source.name='
    ):
        changed('source.path=DIR')


def test_a_config_file_names_one_with_option():
    section = ConfigDict({'data': configs.written(DataConfig())}).lock()
    section.data.source = configs.option(SOURCES, 'folder', path='DIR')
    assert configs.build(DataConfig, section.data, path='data').source == Folder(path='DIR')
    with pytest.raises(AttributeError, match='pth'):
        section.data.source.pth = 'DIR'
    section.data.source.pairs = True


@pytest.mark.parametrize('name', SOURCES)
def test_every_source_has_its_section_and_what_preflight_assumes(name):
    fields = SOURCES[name]().assumed_fields()
    assert fields[0].name == 'image' and fields[1].name == 'label'


def test_data_in_a_bucket_is_to_be_copied():
    config = changed('source.name=folder', 'source.path=gs://bucket/imagenet')
    with pytest.raises(UserError, match=r'source.path = gs://bucket/imagenet: .*copy it to every'):
        make_source(config, split='train')
