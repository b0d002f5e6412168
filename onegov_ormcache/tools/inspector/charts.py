"""Charts of the last 24 hours: the geometry of their bars, for a template that draws SVG.

No library serves. pygal, the one that draws SVG alone and is maintained, puts a script and a style
into each drawing, which the pages' Content-Security-Policy forbids, and needs 27 kB for 24 bars.
It does not know where the numbers come from.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...statistics.results import SlotCounts

#: The number of bars: hours.
HOURS = 24

HOUR = 3600

#: The size of a drawing; a style sheet scales it.
WIDTH, HEIGHT = 288, 96

#: The room of a bar, and the gap beside it.
STEP = WIDTH / HOURS
GAP = 2

#: The least height of a bar of something that is not nothing.
LEAST = 2.0


#: An hour of which nothing was counted.
NOT_COUNTED = SlotCounts()

NOTHING = 'Nothing was counted in the last 24 hours.'


@dataclass(frozen=True)
class Bar:
    """A part of one hour's bar."""

    x: float
    y: float
    width: float
    height: float
    #: What it counts; the style sheet knows it by this.
    kind: str


@dataclass(frozen=True)
class Hour:
    """One hour, in the table beside the drawing.

    :param values: texts, in the order of the chart's kinds.
    """

    start: int
    values: Sequence[str]


@dataclass(frozen=True)
class Chart:
    """One chart.

    :param title: what it shows.
    :param summary: one sentence for those who do not see it.
    :param kinds: what its bars count, from the bottom up.
    :param top: the value at its upper end, as a text.
    :param is_counted: False if there is nothing to show.
    :param bars: what is drawn.
    :param hours: the same as a table.
    """

    title: str
    summary: str
    kinds: Sequence[str]
    top: str
    is_counted: bool
    bars: Sequence[Bar]
    hours: Sequence[Hour]

    width = WIDTH
    height = HEIGHT

    @property
    def ticks(self) -> list[tuple[float, int]]:
        """The hours that are written below: where, and when they begin."""
        return [(at * STEP, each.start) for at, each in enumerate(self.hours) if at % 6 == 0]


def present_hours(now: float | None = None) -> list[int]:
    """Return when the last 24 hours began, the present one last; in seconds since 1970."""
    last = int(time.time() if now is None else now) // HOUR
    return [(last - ago) * HOUR for ago in reversed(range(HOURS))]


def bars(columns: Iterable[Sequence[tuple[str, float]]], top: float) -> list[Bar]:
    """Return the bars of a chart.

    :param columns: for each hour its parts from the bottom up, each with its kind and value.
    :param top: the value at the upper end.
    """
    found: list[Bar] = []
    for at, parts in enumerate(columns):
        y = float(HEIGHT)
        for kind, value in parts:
            if value <= 0 or top <= 0:
                continue
            height = min(max(HEIGHT * value / top, LEAST), y)
            y -= height
            found.append(
                Bar(round(at * STEP + GAP / 2, 1), round(y, 1), STEP - GAP, round(height, 1), kind)
            )
    return found


def round_up(value: float) -> float:
    """Return the next number that is round: two digits at most, with zeros."""
    if value <= 0:
        return 1.0
    power = 1.0
    while power * 10 <= value:
        power *= 10
    while power > value:
        power /= 10
    return next(power * step for step in (1, 1.5, 2, 3, 4, 5, 6, 8, 10) if power * step >= value)


# what the pages draw


def gets_chart(hours: Mapping[int, SlotCounts]) -> Chart:
    """Return the chart of the reads: hits, with the misses on top."""
    shown = _present(hours)
    top = round_up(max((each.hits + each.misses for each in shown.values()), default=0))
    hits, misses = (sum(getattr(s, k) for s in shown.values()) for k in ('hits', 'misses'))
    return Chart(
        'Reads per hour',
        f'{hits:,} hits and {misses:,} misses in the last 24 hours.' if hits + misses else NOTHING,
        ('hits', 'misses'),
        f'{top:,.0f}',
        hits + misses > 0,
        bars(([('hits', s.hits), ('misses', s.misses)] for s in shown.values()), top),
        [Hour(at, (f'{s.hits:,}', f'{s.misses:,}')) for at, s in shown.items()],
    )


def rate_chart(hours: Mapping[int, SlotCounts]) -> Chart:
    """Return the chart of the hit rates; an hour without reads has no bar."""
    shown = _present(hours)
    rates = {at: _rate(each) for at, each in shown.items()}
    known = [rate for rate in rates.values() if rate is not None]
    return Chart(
        'Hit rate per hour',
        f'From {min(known):.0%} to {max(known):.0%}; an hour without reads has no bar.'
        if known else NOTHING,
        ('hit rate',),
        '100%',
        bool(known),
        bars(([('hit rate', rate or 0)] for rate in rates.values()), 1),
        [Hour(at, (f'{rate:.1%}' if rate is not None else '-',)) for at, rate in rates.items()],
    )  # fmt: skip


def cost_chart(hours: Mapping[int, SlotCounts]) -> Chart:
    """Return the chart of the time that creators have run."""
    shown = _present(hours)
    top = round_up(max((each.run_seconds for each in shown.values()), default=0))
    total = sum(each.run_seconds for each in shown.values())
    return Chart(
        'Seconds of creators per hour',
        f'{total:,.2f} seconds in the last 24 hours.' if total else NOTHING,
        ('seconds',),
        f'{top:g} s',
        total > 0,
        bars(([('seconds', each.run_seconds)] for each in shown.values()), top),
        [Hour(at, (f'{each.run_seconds:.3f}',)) for at, each in shown.items()],
    )


def charts(hours: Mapping[int, SlotCounts]) -> list[Chart]:
    """Return the charts of a page."""
    return [gets_chart(hours), rate_chart(hours), cost_chart(hours)]


def _present(hours: Mapping[int, SlotCounts]) -> dict[int, SlotCounts]:
    return {at: hours.get(at, NOT_COUNTED) for at in present_hours()}


def _rate(counts: SlotCounts) -> float | None:
    gets = counts.hits + counts.misses
    return counts.hits / gets if gets else None
