"""What a terminal of 80 columns is told of a run's figures; metrics.jsonl has all of them."""

import math
from collections.abc import Mapping

COLUMNS = 79
BAR = 12  # columns, at the least, for the bar itself

# The figures of training that are shown, the first ones first; a bar shows those of SHORT.
FIGURES = {
    'train/loss': lambda v: f'loss {v:.4g}',
    'train/learning_rate': lambda v: f'lr {v:.2g}',
    'speed/images_per_second': lambda v: f'{v:.{0 if v >= 100 else 1}f} img/s',
    'speed/eta_seconds': lambda v: f'ETA {format_seconds(v)}',
    'speed/wait_share': lambda v: f'wait {v:.0%}',
}
SHORT = ('train/loss', 'speed/images_per_second', 'speed/eta_seconds')


def line(step: int, total: int, values: Mapping[str, float]) -> str:
    """One line: of a line of training loss, rate, speed, what remains and the wait for data; of
    another one its figures.
    """
    share = f' ({step / total:.0%})' if total else ''
    parts = [f'step {step:>{len(str(total))}}/{total}{share}']
    if 'train/loss' in values:
        return fitted(parts + _told(values, FIGURES), '  ', COLUMNS)
    for number, (name, value) in enumerate(values.items()):
        text = f'{name.removeprefix("train/")} {value:.4g}'
        rest = f'… {len(values) - number} more'
        if len('  '.join([*parts, text, rest])) > COLUMNS and number:
            return '  '.join([*parts, rest])
        parts.append(text)
    return '  '.join(parts)


def beside_bar(total: int, values: Mapping[str, float]) -> str:
    """What stands between the step and the bar."""
    head = f'step {total}/{total}'
    return fitted(_told(values, SHORT), ', ', COLUMNS - BAR - len(head) - len(', '))


def fitted(parts: list[str], separator: str, columns: int) -> str:
    """The parts in one line, without those at the end that do not fit."""
    while len(parts) > 1 and len(separator.join(parts)) > columns:
        parts = parts[:-1]
    return separator.join(parts)


def _told(values: Mapping[str, float], names: Mapping | tuple) -> list[str]:
    return [FIGURES[name](values[name]) for name in names if name in values]


def format_seconds(seconds: float) -> str:
    """5.2 -> '5s', 310 -> '5m10s', 7500 -> '2h05m', 200000 -> '2d07h'."""
    if not math.isfinite(seconds):
        return '?'
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    days, h = divmod(hours, 24)
    if days:
        return f'{days}d{h:02d}h'
    if hours:
        return f'{hours}h{m:02d}m'
    return f'{minutes}m{s:02d}s' if minutes else f'{s}s'
