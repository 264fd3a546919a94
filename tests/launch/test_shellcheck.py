import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SCRIPTS = sorted(
    path
    for folder in ('launch', '.ci')
    for path in (ROOT / folder).iterdir()
    if path.read_text().startswith('#!')
)


@pytest.mark.parametrize('script', SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_has_nothing_to_say(script):
    # Beside the interpreter first: an environment may be used without being activated.
    beside = Path(sys.executable).with_name('shellcheck')
    checker = str(beside) if beside.exists() else shutil.which('shellcheck')
    assert checker, "shellcheck is missing: pip install -e '.[test]'"
    result = subprocess.run([checker, script], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
