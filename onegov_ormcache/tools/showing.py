"""Shows facts to people: as tables on a terminal, or as JSON for programs.

This module knows how things look. It does not know what they mean.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from enum import Enum
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..tags.snapshot import CODE_TAG, VALUE_TAG
from .secrets import printable

#: The width of what does not go to a terminal: no line is broken.
ENDLESS = 10_000

#: By seconds, the largest first: units of time.
UNITS = ((86400, 'd'), (3600, 'h'), (60, 'min'))

#: By bytes, the largest first: units of sizes.
SIZES = ((1024**3, 'GiB'), (1024**2, 'MiB'), (1024, 'KiB'))

#: The dots in a full name, but for those within parentheses, which a view or arguments have.
DOTS = re.compile(r'\.(?![^(]*\))')

#: Stands for what is not known.
UNKNOWN = '-'


class Quiet(Console):
    """A console that leaves it to the caller what follows if nobody reads what it prints."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class Screen:
    """Where a command prints; made once for each.

    :param stream: the standard output, as it was before anybody has redirected it.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.stream = stream or sys.stdout
        is_terminal = self.stream.isatty()
        width = None if is_terminal or 'COLUMNS' in os.environ else ENDLESS
        self.console = Quiet(file=self.stream, width=width, highlight=False, markup=False)

    def say(self, text: str) -> None:
        """Print a line."""
        self.console.print(Text(printable(text)), soft_wrap=True)

    def lines(self, text: str) -> None:
        """Print a text of several lines."""
        for line in text.split('\n'):
            self.say(line)

    def show(self, table: Table) -> None:
        """Print a table."""
        self.console.print(table)

    def json(self, facts: Any) -> None:
        """Print facts as JSON; nothing else must be printed."""
        self.stream.write(json.dumps(as_json(facts), indent=2) + '\n')


def table(title: str, columns: Sequence[str], rows: Iterable[Sequence[str | Text]]) -> Table:
    """Return a table.

    :param columns: their titles; the numbers of those with a ``>`` before stand on the right.
    :param rows: the cells. Whatever they have in them is shown as it is.
    """
    made = Table(title=printable(title) or None, title_justify='left', title_style='bold')
    for column in columns:
        is_number = column.startswith('>')
        justify: Any = 'right' if is_number else 'left'
        made.add_column(
            column.lstrip('>'), justify=justify, overflow='fold', no_wrap=is_number
        )  # fmt: skip
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(printable(cell)) for cell in row))
    return made


def fields(title: str, pairs: Iterable[tuple[str, str]]) -> Table:
    """Return a table of names and values, without a frame."""
    made = Table(
        title=printable(title) or None, title_justify='left', title_style='bold', box=None,
        show_header=False, padding=(0, 2, 0, 0),
    )  # fmt: skip
    made.add_column(style='dim')
    made.add_column(overflow='fold')
    for name, value in pairs:
        made.add_row(name, Text(printable(value)))
    return made


def as_json(facts: Any) -> Any:
    """Return facts in the types that JSON has."""
    if is_dataclass(facts) and not isinstance(facts, type):
        return as_json(asdict(facts))
    if isinstance(facts, Mapping):
        return {str(key): as_json(value) for key, value in facts.items()}
    if isinstance(facts, Enum):
        return facts.value
    if isinstance(facts, (list, tuple, set, frozenset)):
        return [as_json(each) for each in facts]
    return facts


def seconds(number: float | None) -> str:
    """Return a time span as a short text."""
    if number is None:
        return UNKNOWN
    for unit, name in UNITS:
        if number >= unit:
            return f'{number / unit:.1f} {name}'
    return f'{number:.1f} s' if number >= 0.1 else f'{number * 1000:.1f} ms'


def ago(at: float | None) -> str:
    """Return how long ago a moment was.

    :param at: seconds since 1970.
    """
    if at is None:
        return UNKNOWN
    past = time.time() - at
    return f'{seconds(past)} ago' if past >= 0 else f'in {seconds(-past)}'


def size(number: int | None) -> str:
    """Return a number of bytes as a short text."""
    if number is None:
        return UNKNOWN
    for unit, name in SIZES:
        if number >= unit:
            return f'{number / unit:.1f} {name}'
    return f'{number} B'


def number(count: int, what: str) -> str:
    """Return a number of things.

    :param what: one of them.
    """
    return f'{count} {what}' if count == 1 else f'{count} {what}s'


def percent(part: float | None) -> str:
    """Return a part of 1 as percent."""
    return UNKNOWN if part is None else f'{part * 100:.1f} %'


def reasons(counts: Mapping[str, int]) -> list[str]:
    """Return what was counted for some reasons, the most frequent one first."""
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return [f'{why} ({times})' for why, times in ordered]


def telling(tags: Iterable[str]) -> list[str]:
    """Return the tags that say what a value depends on: not those that all values have, nor those
    by which it is evicted by hand."""
    return [tag for tag in tags if tag != CODE_TAG and not tag.startswith(VALUE_TAG)]


def endings(names: Iterable[str]) -> dict[str, str]:
    """Return for each full name of a property the shortest end that no other one has."""
    known = {name: DOTS.split(name) for name in names}
    taken = Counter(
        tuple(parts[-most:]) for parts in known.values() for most in range(1, len(parts) + 1)
    )
    found = {}
    for name, parts in known.items():
        alone = (most for most in range(1, len(parts) + 1) if taken[tuple(parts[-most:])] == 1)
        found[name] = '.'.join(parts[-next(alone, len(parts)) :])
    return found


def short(names: Iterable[str], most: int = 5) -> str:
    """Return names separated by commas, and how many more there are."""
    listed = list(names)
    more = f' and {len(listed) - most} more' if len(listed) > most else ''
    return ', '.join(listed[:most]) + more
