"""The cases' plots, as SVG."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from .measuring import Timing
from .results import CaseResult, Column, Plot, Row, text_of

OURS = '#1b6ac9'
OTHERS = ('#8a8f98', '#d08a2e', '#5b9a68', '#a86bb1', '#c0504d', '#3a9aa5', '#7d6a4f')
# the same picture for the same numbers: no dates and no random names in the files
mpl.rcParams['svg.hashsalt'] = 'onegov_ormcache'
# letters stay letters: small files, in which one can search
mpl.rcParams['svg.fonttype'] = 'none'
METADATA: Any = {'Date': None, 'Creator': None}


def draw(result: CaseResult, folder: Path) -> Path | None:
    """Draw a case, if it has a plot and anything to show."""
    if result.plot is None:
        return None
    column = next(c for c in result.columns if c.key == result.plot.column)
    rows = [row for row in result.rows if number_of(row, column) is not None]
    if not rows:
        return None
    figure = (bars if result.plot.kind == 'bars' else lines)(rows, column, result.plot)
    figure.axes[0].set_title(result.title, pad=12)
    path = folder / f'{result.name}.svg'
    figure.savefig(path, format='svg', metadata=METADATA, bbox_inches='tight')
    return path


def number_of(row: Row, column: Column) -> float | None:
    value = row.values.get(column.key)
    if isinstance(value, Timing):
        return value.median
    return float(value) if isinstance(value, (int, float)) else None


def bars(rows: list[Row], column: Column, plot: Plot) -> Figure:
    """Horizontal bars, grouped by setting, each with its number."""
    settings = list(dict.fromkeys(row.setting for row in rows))
    figure = Figure(figsize=(8, 0.6 + 0.28 * len(rows) + 0.3 * len(settings)))
    axes = figure.subplots()
    others = dict(
        zip(
            dict.fromkeys(r.contestant for r in rows if not is_ours(r)), OTHERS * 3, strict=False
        )
    )
    at, ticks, labels = 0.0, [], []
    for setting in settings:
        axes.text(0, at, setting, transform=axes.get_yaxis_transform(), fontweight='bold')
        at += 1
        for row in (row for row in rows if row.setting == setting):
            number = number_of(row, column) or 0.0
            color = OURS if is_ours(row) else others[row.contestant]
            axes.barh(at, number, color=color, height=0.8)
            label = ' ' + text_of(row.values[column.key], column.unit)
            axes.text(number, at, label, va='center', fontsize=8)
            ticks.append(at)
            labels.append(row.contestant)
            at += 1
        at += 0.4
    axes.set_yticks(ticks, labels, fontsize=8)
    axes.set_ylim(at - 0.4, -0.8)
    if plot.log:
        axes.set_xscale('log')
    else:
        axes.set_xlim(left=0)
    axes.margins(x=0.15)
    axes.set_xlabel(axis_title(column))
    axes.spines[['top', 'right']].set_visible(False)
    return figure


def is_ours(row: Row) -> bool:
    return row.contestant.startswith(('onegov_ormcache', 'orm_cached', 'request_cached'))


def lines(rows: list[Row], column: Column, plot: Plot) -> Figure:
    """The median over a number, with its quartiles."""
    figure = Figure(figsize=(7, 3.5))
    axes = figure.subplots()
    factor = 1000 if column.unit == 'seconds' else 1
    for name in dict.fromkeys(row.contestant for row in rows):
        own = [row for row in rows if row.contestant == name and row.x is not None]
        xs = [row.x or 0.0 for row in own]
        ys = [(number_of(row, column) or 0.0) * factor for row in own]
        axes.plot(xs, ys, marker='o', color=OURS, label=name)
        spread = [row.values[column.key] for row in own]
        timings = [value for value in spread if isinstance(value, Timing)]
        if len(timings) == len(own):
            low = [t.low * factor for t in timings]
            high = [t.high * factor for t in timings]
            axes.fill_between(xs, low, high, color=OURS, alpha=0.15)
    axes.set_xscale('log')
    axes.set_ylim(bottom=0)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(column.title + (' (milliseconds)' if factor > 1 else ''))
    axes.spines[['top', 'right']].set_visible(False)
    return figure


def axis_title(column: Column) -> str:
    units = {'seconds': ' (seconds)', 'bytes': ' (bytes)'}
    return column.title + units.get(column.unit, '')
