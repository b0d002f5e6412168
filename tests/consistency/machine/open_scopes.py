"""What the machine remembers of a request scope that is open, and of each value it was given."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onegov_ormcache.core.scope import RequestScope
from tests.consistency.town import Row, Town

#: Rows that scopes of one tenant may have for their own, one each.
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
    #: Its own row, as its transaction has it.
    row: Row | None
    closed: bool = False
    savepoints: list[tuple[Any, Row | None]] = field(default_factory=list)
    #: Which states of the database its transaction may see.
    first: int | None = None
    last: int | None = None
    #: Until which state its snapshot may have been taken.
    snapshot: int | None = None
    seen: list[Seen] = field(default_factory=list)
    #: What a request-cached property may have kept since the scope was opened.
    kept: list[Any] = field(default_factory=list)


def tier_of(opened: Open) -> list[Any]:
    return list(opened.scope.tier.values())
