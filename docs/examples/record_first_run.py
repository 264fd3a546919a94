"""Records a first run, as a user sees it in a terminal of 80 columns, into docs/first_run.md.

    python docs/examples/record_first_run.py

The quick start and its second start run in a fresh folder and with nothing compiled, on a
pseudo-terminal. Of the states of the progress bar, which is redrawn in place, a few are kept.
"""

import codecs
import os
import pty
import re
import subprocess
import sys
import tempfile
import termios
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / 'docs' / 'first_run.md'
COMMAND = 'python -m mim_jax.main --config=configs/quickstart.py'
ROWS, COLUMNS = 24, 80
KEPT = 3  # states of the bar between two lines that stay

INTRODUCTION = """\
# A first run

All that a user sees of the quick start, in a terminal of {columns} columns. Recorded on {cores} CPU
cores, with nothing compiled before, by `python docs/examples/record_first_run.py`. The progress bar
is redrawn in place; a few of its states are kept here.

```
{first}
```

It took {seconds:.0f} s. The same command once more:

```
{again}
```
"""


class Transcript:
    """The lines that a terminal has shown, from the text sent to it.

    A line that is overwritten was a state; of those between two lines that stay, KEPT are kept.
    """

    def __init__(self):
        self.lines, self._states = [], []
        self._line, self._column = [], 0

    def feed(self, text: str) -> None:
        # Colours and movements; of them all only the erasing of a line matters here.
        for part in re.split(r'(\x1b\[[0-9;?]*[a-zA-Z]|[\r\n])', text):
            if part == '\n':
                self._end()
            elif part == '\r':
                self._column = 0
            elif part.startswith('\x1b'):
                if part.endswith('K'):
                    del self._line[self._column :]
            else:
                self._put(part)

    def close(self) -> list[str]:
        if self._line:
            self._end()
        return self.lines

    def _put(self, text: str) -> None:
        if text and self._column == 0 and (state := ''.join(self._line).rstrip()):
            self._states.append(state)
        self._line[self._column : self._column + len(text)] = text
        self._column += len(text)

    def _end(self) -> None:
        states = list(dict.fromkeys(self._states))
        last = ''.join(self._line).rstrip()
        chosen = [states[i * len(states) // KEPT] for i in range(KEPT)] if states else []
        self.lines += [*dict.fromkeys(state for state in chosen if state != last), last]
        self._states, self._line, self._column = [], [], 0


def record(command: list[str], **given) -> tuple[list[str], int]:
    """The lines that a command shows on a terminal of its own, and its exit status.

    given: arguments of `subprocess.Popen`.
    """
    own, other = pty.openpty()
    termios.tcsetwinsize(other, (ROWS, COLUMNS))
    streams = {'stdin': other, 'stdout': other, 'stderr': other}
    process = subprocess.Popen(command, **streams, start_new_session=True, **given)
    os.close(other)
    transcript = Transcript()
    decoder = codecs.getincrementaldecoder('utf-8')('replace')
    with open(own, 'rb', buffering=0) as terminal:
        while data := _read(terminal):
            transcript.feed(decoder.decode(data))
    return transcript.close(), process.wait()


def _read(terminal) -> bytes:
    try:
        return terminal.read(65536)
    except OSError:  # so Linux says that the last one who wrote has gone
        return b''


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / 'configs').symlink_to(ROOT / 'configs')
        environment = os.environ | {
            'PYTHONPATH': str(ROOT),
            'JAX_COMPILATION_CACHE_DIR': f'{folder}/compiled',
            'TERM': 'xterm',
        }
        environment.pop('COLUMNS', None)
        command = [sys.executable, *COMMAND.split()[1:]]
        shown, times = [], []
        for _ in range(2):
            began = time.monotonic()
            lines, status = record(command, cwd=folder, env=environment)
            times.append(time.monotonic() - began)
            shown.append('\n'.join([f'$ {COMMAND}', *lines]))
            print(shown[-1])
            if status:
                sys.exit(f'status {status}: {PAGE} is left as it was.')
    page = INTRODUCTION.format(
        columns=COLUMNS, cores=os.cpu_count(), first=shown[0], again=shown[1], seconds=times[0]
    )
    PAGE.write_text(page, encoding='utf-8')


if __name__ == '__main__':
    main()
