"""The results of a case: rows of values, from which tables, files and plots are made."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from .measuring import Timing

Value = Timing | float | int | str | None
Unit = Literal['seconds', 'ratio', 'count', 'bytes', 'rate']


@dataclass(frozen=True)
class Column:
    """A column of a case's table."""

    key: str
    title: str
    unit: Unit


@dataclass(frozen=True)
class Plot:
    """The column that is drawn, as bars per setting or as lines over numbers."""

    column: str
    kind: Literal['bars', 'lines'] = 'bars'
    log: bool = True
    #: The label of the x axis, for lines.
    x: str = ''


@dataclass
class Row:
    """The values of one contestant in one setting."""

    setting: str
    contestant: str
    values: dict[str, Value]
    #: Why values are missing, or something that the reader of the numbers must know.
    note: str = ''
    #: The setting as a number, for lines.
    x: float | None = None


@dataclass
class CaseResult:
    """All rows of one case."""

    name: str
    title: str
    #: A description of the measurement, in a sentence or two.
    about: str
    columns: Sequence[Column]
    plot: Plot | None = None
    rows: list[Row] = field(default_factory=list)

    def add(
        self,
        setting: str,
        contestant: str,
        note: str = '',
        x: float | None = None,
        **values: Value,
    ) -> None:
        """Add a row; values are named by their columns' keys."""
        self.rows.append(Row(setting, contestant, values, note, x))

    def as_json(self) -> dict[str, Any]:
        """Return everything, with the samples of each timing."""
        return asdict(self)


def text_of(value: Value, unit: Unit) -> str:
    """A value as people read it."""
    if value is None:
        return ''
    if isinstance(value, str):
        return value
    number = value.median if isinstance(value, Timing) else float(value)
    if unit == 'seconds':
        return time_text(number)
    if unit == 'ratio':
        if number < 0.095:
            return f'{number:.1g}x'
        return f'{number:.2f}x' if number < 10 else f'{number:,.0f}x'
    if unit == 'bytes':
        return f'{number:,.0f} B'
    if unit == 'rate':
        return f'{number:,.0f}/s'
    return f'{number:,.0f}'


def time_text(seconds: float) -> str:
    """Seconds in the unit that gives one to three digits before the point."""
    for factor, unit in ((1e9, 'ns'), (1e6, 'us'), (1e3, 'ms')):
        if seconds * factor < 1000:
            number = seconds * factor
            return f'{number:.3g} {unit}'
    return f'{seconds:.3g} s'
