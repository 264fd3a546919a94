"""launch/constraints.txt: a version for everything that an installation on a cluster takes."""

import re
import runpy
import sys
import types
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / 'launch' / 'constraints.txt').read_text()
EXTRAS = re.findall(r'--extra (\w+)', TEXT)


def pins():
    lines = [line for line in TEXT.splitlines() if not line.startswith('#')]
    pairs = [re.fullmatch(r'([a-z0-9-]+)==([\w.]+)', line).groups() for line in lines]
    return {name: Version(version) for name, version in pairs}


@pytest.fixture
def requirements(monkeypatch):
    """What setup.py asks for, without extras and with those of the constraints."""
    told = {}
    tools = types.SimpleNamespace(
        setup=lambda **given: told.update(given), find_packages=lambda **given: []
    )
    monkeypatch.setitem(sys.modules, 'setuptools', tools)
    runpy.run_path(str(ROOT / 'setup.py'))
    extras = [line for name in EXTRAS for line in told['extras_require'][name]]
    return [Requirement(line) for line in (*told['install_requires'], *extras)]


def test_every_requirement_has_a_version_that_it_allows(requirements):
    """Otherwise: the command in the file's head, with --upgrade."""
    assert {'tpu', 'gcs', 'cuda12', 'cuda13', 'wandb'} <= set(EXTRAS)
    found = pins()
    for requirement in requirements:
        version = found[canonicalize_name(requirement.name)]
        assert requirement.specifier.contains(version), requirement


def test_what_jax_is_installed_with_fits_it():
    found = pins()
    assert found['jaxlib'] == found['jax']
    assert found['jax-cuda12-plugin'] == found['jax-cuda13-plugin'] == found['jax']
    assert 'libtpu' in found


def test_nothing_says_where_packages_come_from():
    assert '://' not in TEXT and '--index' not in TEXT


def test_the_scripts_install_by_it_with_the_python_that_it_was_made_for():
    (version,) = re.findall(r'--python-version (\S+)', TEXT)
    script = (ROOT / 'launch' / 'tpu_vm.sh').read_text()
    image = (ROOT / 'launch' / 'Dockerfile').read_text()
    assert f'uv venv --python {version} ' in script and f'FROM python:{version}-' in image
    assert '-c launch/constraints.txt' in script and '-c launch/constraints.txt' in image
