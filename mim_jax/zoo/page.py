"""The page of the zoo: one table, and a picture and the words of each method."""

import dataclasses
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from PIL import Image

from mim_jax import data, layout, planned, provenance, restoring, storage
from mim_jax.evaluators import EvenlySpaced
from mim_jax.experiment import Experiment
from mim_jax.logs import read_metrics
from mim_jax.zoo.entries import learns_from_labels, weights
from mim_jax.zoo.figures import ERRORS, UNMOVED, Figures, read, verdict

HEADER = (
    'method',
    'loss',
    'kNN, %',
    'linear probe, %',
    'RankMe',
    'images/s',
    'memory, MiB',
    'features',
)

TEXT = """\
# The zoo

Every method of the registry, trained on the same images for the same budget from the same seed:
{steps} steps of {batch} images, each method's `configs/NAME.py:{size}` with its own network,
optimiser and learning rate, which rises and falls within these steps. It shows that each one runs
and learns, what it costs, and what it hides, predicts or matches. **It does not rank them**: the
budget is minutes, the teachers of some have learned from labels, and some learn from labels
themselves.

    {command}

makes this page. Each run is a process of its own, one after another, in `runs/zoo/NAME`; starting
the command again runs what is not finished, and writes the page of all that is. Seed {seed};
{machine}.

{table}

{verdicts}

- **loss**: mean of the first and of the last {every} steps. The losses of two methods are not of
  one kind, and one may rise where what is predicted moves with the network.
- **kNN** and **linear probe**: top-1 of the frozen features of whole images, on {test} test images
  from {train} training images, before the first and after the last step
  ([evaluation.md](evaluation.md)). **RankMe**: how many directions the features use. Where the
  config says so (`eval.use_ema`), they are those of the network's average.
- **features**: *better* where kNN or linear probe has risen by more than {errors:g} standard
  errors of the difference, √(p₀(1 − p₀)/n + p₁(1 − p₁)/n) of the shares p₀ before and p₁ after on
  n test images; *worse* where one has fallen by as much; *mixed* where one has risen and one
  fallen; **not moved** where neither can be told. Not two errors but {errors:g}, for the table has
  some fifty such differences. This is the chance of which images were tested, not that of another
  seed.
- **images/s**: median of the lines of the log, one per {every} steps; compilation and evaluation do
  not count.
- **memory**: the most that the run's process held (resident size, with Python, JAX, compilation,
  data and evaluation).
- *labels*: the method itself learns from labels. *after NAME*: it learns from the weights of NAME:
  a run of this table, or `quickstart_teacher`, which comes with the package and has learned from
  labels.

## What each one hides, predicts or matches

The words are those of the method's module in `mim_jax/objectives`. The pictures are what the run
drew at its end, of a test image; of a method that draws none of its own, the features
([pictures.md](pictures.md)).

{methods}\
## Flags

| flag | default | meaning |
| --- | --- | --- |
| `--only` | all | run these alone (names with commas) and what they learn from; the page has all \
that is finished |
| `--steps` | {default_steps} | of each run |
| `--seed` | 0 | of each run |
| `--size` | `embedded` | argument of the configs; `cifar10`, for an accelerator, with \
`--config.data.source.path=DIR` |
| `--workdir` | `runs/zoo` | gets the runs |
| `--out` | `docs/zoo.md` | the page; its pictures lie beside it in `images/zoo` |
| `--machine` | as found | what the page says of the machine |
| `--config.FIELD=VALUE` | | for all runs, such as `--config.data.batch_size=256` |

A method that fails does not stop the others: the table says so, and the exit status is 1.
"""


@dataclasses.dataclass(frozen=True)
class Row:
    """A finished run: its config as it was run, its last step, its figures, and how many images
    judged its features, by evaluator, from how many training images kNN chose `neighbours`.

    learns_from: names of runs and files whose weights it reads. peak: bytes that its process held
    at most, None: not known.
    """

    name: str
    workdir: Path
    config: Experiment
    steps: int
    figures: Figures
    images: Mapping[str, int]
    neighbours: int
    learns_from: tuple[str, ...]
    peak: int | None

    @property
    def verdict(self) -> str:
        images = self.images
        return verdict(self.figures, knn_images=images['knn'], linear_images=images['linear'])


def row(run: planned.Run, *, peak: int | None) -> Row:
    """That of a finished run."""
    config = restoring.read_config(run.workdir)
    read_by_it = weights(layout.read_config(run.workdir)['objective'], 'objective')
    train = data.make_source(config.data, split=config.data.split)
    test = data.make_source(config.data, split=config.data.eval_split)
    limits = {name: getattr(config.eval, name).max_test for name in ('knn', 'linear')}
    return Row(
        name=run.name,
        workdir=run.workdir,
        config=config,
        steps=run.total_steps,
        figures=read(read_metrics(run.workdir), total=run.total_steps),
        images={name: len(EvenlySpaced(test, limit)) for name, limit in limits.items()},
        neighbours=len(EvenlySpaced(train, config.eval.knn.max_train)),
        learns_from=tuple(Path(path).stem for _, path in read_by_it),
        peak=peak,
    )


def write(
    out: Path,
    rows: Sequence[Row],
    *,
    failed: Mapping[str, str],
    absent: Sequence[str],
    command: str,
    size: str,
    machine: str | None,
    default_steps: int,
) -> None:
    """Writes the page and its pictures.

    rows: at least one. failed: what is wrong, by name. absent: names of those that were not run.
    """
    pictures = out.parent / 'images' / out.stem
    pictures.mkdir(parents=True, exist_ok=True)
    config = rows[0].config
    text = TEXT.format(
        steps=rows[0].steps,
        batch=config.data.batch_size,
        size=size,
        command=command,
        machine=machine or described(rows),
        seed=config.seed,
        table=table(rows, failed=failed),
        verdicts=verdicts(rows, failed=failed, absent=absent),
        every=config.log.every_steps,
        test=f'{rows[0].images["knn"]:,}',
        train=f'{rows[0].neighbours:,}',
        errors=ERRORS,
        methods=''.join(section(r, out=out, pictures=pictures) for r in rows),
        default_steps=default_steps,
    )
    storage.write_whole(out, text)


def table(rows: Sequence[Row], *, failed: Mapping[str, str]) -> str:
    """Markdown: a row per method, before and after."""
    lines = [HEADER, ['---'] * len(HEADER)]
    for r in rows:
        figures = r.figures
        notes = ['labels'] * learns_from_labels(r.config.objective)
        notes += [f'after `{name}`' for name in r.learns_from]
        lines.append(
            [
                f'[`{r.name}`](#{r.name})' + (f' ({", ".join(notes)})' if notes else ''),
                _arrow(figures.loss, '.3f'),
                _arrow([100 * share for share in figures.knn], '.1f'),
                _arrow([100 * share for share in figures.linear], '.1f'),
                _arrow(figures.rankme, '.1f'),
                f'{figures.speed:.0f}',
                'unknown' if r.peak is None else f'{r.peak / 2**20:,.0f}',
                f'**{r.verdict}**' if r.verdict == UNMOVED else r.verdict,
            ]
        )
    lines += [[f'`{name}`', '**failed**', *[''] * (len(HEADER) - 2)] for name in failed]
    return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def verdicts(rows: Sequence[Row], *, failed: Mapping[str, str], absent: Sequence[str]) -> str:
    """Sentences that name the methods whose features got no better, that failed or were not run."""

    def of(verdict: str) -> str:
        return _names([r.name for r in rows if r.verdict == verdict])

    found = [f'Features that did not move in this budget: {of(UNMOVED) or "none"}.']
    if worse := of('worse'):
        found.append(f'Features that became worse in it: {worse}.')
    found += [f'Failed: `{name}`: {" ".join(why.split())}' for name, why in failed.items()]
    if absent:
        found.append(f'Not run: {_names(absent)}.')
    return '\n\n'.join(found)


def section(r: Row, *, out: Path, pictures: Path) -> str:
    """What a method is, in the words of its module, and its picture, which is written."""
    shown = 'The run could draw no picture.'
    if drawn := sheets(r.workdir, step=r.steps):
        picture = pictures / f'{r.name}.png'
        save_picture(drawn, picture)
        shown = f'![{r.name}]({picture.relative_to(out.parent).as_posix()})'
    return f'### {r.name}\n\n{words(type(r.config.objective))}\n\n{shown}\n\n'


def words(objective: type) -> str:
    """The first two paragraphs of the docstring of a method's module: its name, what it does."""
    paragraphs = re.split(r'\n\s*\n', sys.modules[objective.__module__].__doc__.strip())
    title, *rest = (' '.join(paragraph.split()) for paragraph in paragraphs[:2])
    return '\n\n'.join([f'**{title}**', *rest])


def sheets(workdir: Path, *, step: int) -> list[Path]:
    """The pictures that a run has drawn at a step: the method's own, or of features if there are
    no others.
    """
    found = sorted((workdir / 'pictures').glob(f'*_{step:06d}.png'))
    return [path for path in found if not path.name.startswith('features_')] or found


def save_picture(paths: Sequence[Path], out: Path) -> None:
    """Pictures below each other as one."""
    parts = [Image.open(path).convert('RGB') for path in paths]
    whole = Image.new('RGB', (max(p.width for p in parts), sum(p.height for p in parts)), 'white')
    top = 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height
    whole.save(out, optimize=True)


def described(rows: Sequence[Row]) -> str:
    """The devices and versions that made the runs, and the processor of this machine."""
    found = {}
    for r in rows:
        folder = layout.checkpoints(r.workdir) / str(r.steps)
        record = provenance.read(folder) or {}
        devices, packages = record.get('devices', {}), record.get('packages', {})
        kind = f'{devices.get("count")} x {devices.get("kind")}'
        found[f'{kind}, jax {packages.get("jax")}, Python {record.get("python")}'] = None
    return f'{os.cpu_count()} cores ({processor()}); {"; ".join(found)}'


def processor() -> str:
    """The processor's name, as Linux knows it."""
    try:
        info = Path('/proc/cpuinfo').read_text(encoding='utf-8')
    except OSError:
        info = ''
    named = re.search(r'^model name\s*:\s*(.+)$', info, re.MULTILINE)
    return named.group(1) if named else 'unknown'


def _arrow(pair: Sequence[float], form: str) -> str:
    return f'{pair[0]:{form}} → {pair[1]:{form}}'


def _names(names: Sequence[str]) -> str:
    return ', '.join(f'`{name}`' for name in names)
