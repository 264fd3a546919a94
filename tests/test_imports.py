"""Who knows whom: no circle among the modules, and weights and targets without the program."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = {
    '.'.join(path.relative_to(ROOT).with_suffix('').parts).removesuffix('.__init__'): path
    for path in sorted((ROOT / 'mim_jax').rglob('*.py'))
}


def nodes(tree):
    """All that runs: not what only a type checker reads."""
    yield tree
    for child in ast.iter_child_nodes(tree):
        if not (isinstance(child, ast.If) and ast.unparse(child.test) == 'TYPE_CHECKING'):
            yield from nodes(child)


def imported(module):
    """The project's modules that one imports, anywhere in its code, and the packages above them."""
    found = set()
    for node in nodes(ast.parse(MODULES[module].read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{module}: imports are absolute'
            names = {f'{node.module}.{alias.name}' for alias in node.names}
            found |= {name if name in MODULES else node.module for name in names}
    above = {name.rpartition('.')[0] for name in found if name in MODULES}
    # The packages that a module is inside of are being loaded when it is: no import of its own.
    found |= {name for name in above if not module.startswith(f'{name}.')}
    return found & MODULES.keys()


def test_no_circle():
    graph = {module: imported(module) - {module} for module in MODULES}
    assert 'mim_jax.models.vit' in graph['mim_jax.objectives.base']  # the graph is not empty
    while True:
        done = {module for module, needs in graph.items() if not needs}
        if not done:
            break
        graph = {m: needs - done for m, needs in graph.items() if m not in done}
    # What is left is in a circle, or needs one: leave out the latter.
    while True:
        needed = set().union(*graph.values()) if graph else set()
        if needed >= graph.keys():
            break
        graph = {m: needs for m, needs in graph.items() if m in needed}
    assert not graph, 'in a circle: ' + '; '.join(f'{m} -> {sorted(n)}' for m, n in graph.items())


@pytest.mark.parametrize('module', ['targets', 'teachers', 'weights.__main__'])
def test_the_program_is_not_loaded(module):
    code = f'import sys, mim_jax.{module}; print(*sys.modules)'
    loaded = subprocess.run(
        [sys.executable, '-c', code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    assert 'mim_jax.weights' in loaded
    program = ('trainer', 'program', 'restoring', 'experiment', 'objectives')
    assert not {f'mim_jax.{name}' for name in program} & set(loaded)
