"""What a read and a write of the matrix are. This module knows no table."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from sqlalchemy import Result
from sqlalchemy.orm import Session

from onegov_ormcache.core.rows import Rows

POSTGRESQL = frozenset({'postgresql'})
BOTH = frozenset({'postgresql', 'sqlite'})

#: What a read depends on, as a developer names it: a table's name, a mapped class, or rows.
Dependency: TypeAlias = 'str | type | Rows'


@dataclass(frozen=True)
class Read:
    """A way to read from the database."""

    name: str
    #: The named policy of the property that reads in this way.
    policy: tuple[Dependency, ...]
    #: Reads by a session of the tenant; returns a value of lists, strings and numbers.
    run: Callable[[Session], Any]
    databases: frozenset[str] = BOTH
    #: True if the read writes or locks: a scope reads it after all others.
    disturbs: bool = False
    #: The arguments of each call, if it reads a value for each of several; empty if it takes none.
    arguments: tuple[tuple[Any, ...], ...] = ()
    #: Reads the value for the arguments of one call.
    run_one: Callable[..., Any] | None = None

    @property
    def slug(self) -> str:
        """The name as an identifier."""
        return re.sub(r'\W+', '_', self.name).lower()


@dataclass(frozen=True)
class Write:
    """A way to change the database."""

    name: str
    #: Names of reads, as a regular expression, of which it changes at least one. Empty for a
    #: control that changes nothing.
    shows: str
    #: Writes by a session of the tenant; the harness flushes and ends the transaction.
    run: Callable[[Session], Any]
    databases: frozenset[str] = BOTH
    #: True if the tenants must be made anew afterwards, because it changes more than rows.
    rebuilds: bool = False
    #: True if it ends the transaction itself, behind SQLAlchemy.
    ends: bool = False
    #: True if it changes something only while the transaction commits.
    late: bool = False
    #: False if it means nothing to a host that sets the search path before each statement.
    hosts: bool = True
    #: True if it takes the tenant away, which each read in a host may tell by an error.
    removes: bool = False
    #: The package's own errors that it may raise on purpose.
    refused: tuple[str, ...] = ()


class Entries:
    """A list of reads or writes, whose names are unique."""

    def __init__(self) -> None:
        self.reads: list[Read] = []
        self.writes: list[Write] = []

    def read(
        self,
        name: str,
        policy: Dependency | Sequence[Dependency],
        run: Callable[[Session], Any],
        **options: Any,
    ) -> None:
        """Add a read; the arguments are those of :class:`Read`."""
        named = (policy,) if isinstance(policy, (str, type, Rows)) else tuple(policy)
        self.reads.append(Read(name, named, run, **options))

    def write(self, name: str, shows: str, run: Callable[[Session], Any], **options: Any) -> None:
        """Add a write; the arguments are those of :class:`Write`."""
        self.writes.append(Write(name, shows, run, **options))


def plain(value: Any) -> Any:
    """Return a value of the database as lists, strings and numbers."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)) or hasattr(value, '_mapping'):
        return [plain(item) for item in value]
    return str(value)


def rows(result: Result[Any] | Sequence[Any]) -> list[Any]:
    """Return rows as lists of plain values, sorted, so that no order of the database counts."""
    return sorted(([plain(item) for item in row] for row in result), key=repr)
