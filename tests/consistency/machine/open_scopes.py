"""The machine's notes about an open request scope, and about each value that it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onegov_ormcache.core.scope import RequestScope
from tests.consistency.town import Row, Town

#: The rows of a tenant. Each open scope of the tenant has one of them for itself.
SLOTS = range(1, 6)


@dataclass
class Seen:
    """A value that a transaction was given."""

    name: str
    value: Any
    role: str
    own: Row | None
    hit: bool


@dataclass(eq=False)
class Open:
    """A request scope that is open, and what the model knows of it."""

    scope: RequestScope
    app: Town
    tenant: str
    slot: int
    role: str
    lasts: bool
    #: The scope's own row, as its transaction sees it.
    row: Row | None
    closed: bool = False
    savepoints: list[tuple[Any, Row | None]] = field(default_factory=list)
    #: The first and the last state of the database that its transaction may see. `first` is None
    #: before the transaction begins; `last` is None as long as new states may be seen.
    first: int | None = None
    last: int | None = None
    #: The last state at which its snapshot may have been taken.
    snapshot: int | None = None
    seen: list[Seen] = field(default_factory=list)
    #: Values that a request-cached property may have kept since the scope was opened.
    kept: list[Any] = field(default_factory=list)


def tier_of(opened: Open) -> list[Any]:
    return list(opened.scope.tier.values())
