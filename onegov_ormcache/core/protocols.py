"""What read path, write path, scope and cache may use of one another.

Each is written against a protocol of this module and not against the other's class: a
signature says what a function may touch, and no module imports in a circle. A request
scope is a :class:`ReadingScope` and a :class:`WritingScope`, a cache is a
:class:`ScopeCache`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ..database.session_manager import SessionManager
from ..database.statements import Statement
from ..tags.settling import Settler
from ..tags.snapshot import Snapshot, TagStore
from ..tiers.process import ProcessTier, Slot, StoredValue
from ..tiers.request import TierEntry
from ..tiers.serializer import Serializer
from ..tiers.shared import SharedTier
from .properties import Declaration, Property
from .recording import CacheEvent
from .runs import Run
from .settings import OrmCacheSettings

# of the cache


class AnyCache(Protocol):
    """What both paths use of a cache."""

    @property
    def settings(self) -> OrmCacheSettings:
        """The validated settings."""

    @property
    def recorder(self) -> Callable[[CacheEvent], None] | None:
        """Called with each event, while somebody records."""


class ReadingCache(AnyCache, Protocol):
    """What the read path uses of a cache."""

    @property
    def serializer(self) -> Serializer:
        """Turns values into bytes and back."""

    @property
    def shared_tier(self) -> SharedTier:
        """Values of all processes, and the locks under which they are computed."""

    def fill(self, schema: str, key: str, stored: StoredValue) -> bool:
        """Store a value in the shared tier, if its stamp holds; True if it was stored."""

    def with_shared(self, tags: Collection[str]) -> frozenset[str]:
        """Return the tags, with those of shared tables that cascade into theirs."""


class WritingCache(AnyCache, Protocol):
    """What the write path uses of a cache."""

    @property
    def session_manager(self) -> SessionManager:
        """Knows the tables, their foreign keys, and the database."""

    @property
    def tags(self) -> TagStore:
        """Keeps versions and doubts."""

    @property
    def function_tags(self) -> frozenset[str]:
        """The tags of all properties whose policies are functions."""

    @property
    def all_tags(self) -> frozenset[str]:
        """The tags of all tables, and ``function_tags``."""

    def places(self, schema: str) -> tuple[str, ...]:
        """Return the schemas in which the versions of a tenant's tags lie."""

    def renew_later(self, *schemas: str) -> None:
        """Give these a new birth, as soon as the store can be reached."""


class ScopeCache(ReadingCache, WritingCache, Protocol):
    """What a request scope, and a descriptor that has found one, use of a cache."""

    @property
    def process_tier(self) -> ProcessTier:
        """Values of this process."""

    @property
    def settler(self) -> Settler:
        """Settles what writers have left behind."""

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's present snapshot."""

    def is_cache_of(self, instance: Any) -> bool:
        """Return whether an object's cached properties are this cache's."""

    def resolve(self, declaration: Declaration, instance: Any) -> tuple[Declaration, type]:
        """Return the declaration that is meant, and the class whose property it is."""

    def find(self, instance: Any, name: str) -> Declaration | None:
        """Return the cached property of an object that has this name."""

    def property_of(self, declaration: Declaration, owner: type) -> Property:
        """Return the property of a declaration on a class."""


# of the request scope


class LookupScope(Protocol):
    """What it takes to find a value in a tier, and to tell if this transaction may use it."""

    schema: str
    #: Versions of the cached values that this transaction has read.
    returned: dict[str, str]

    @property
    def cache(self) -> ReadingCache:
        """Whose scope it is."""

    @property
    def snapshot_number(self) -> int:
        """Counts the scope's snapshots."""

    @property
    def process_tier(self) -> MutableMapping[str, Slot]:
        """The tenant's part of the process tier."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction."""

    def blocks(self, tags: Collection[str]) -> bool:
        """Return whether values with these tags must come from the database now."""

    def look_again(self, tags: Collection[str]) -> None:
        """Take another snapshot, if that may end another writer's doubt of these tags."""

    def store_lost(self) -> None:
        """Wait no more for the store in this transaction."""


class ComputingScope(LookupScope, Protocol):
    """What it takes to run a creator, and to learn what its value depends on."""

    #: Versions of what creators have read from the database for this transaction.
    computed: dict[str, str]

    @property
    def runs(self) -> Sequence[Run]:
        """The runs in progress, the innermost last."""

    @property
    def on_replica(self) -> bool:
        """Whether the transaction reads from a replica."""

    def session(self) -> Session:
        """Return the scope's session."""

    def run(self, prop: Property) -> AbstractContextManager[Run]:
        """Record what happens in the block as one run of the property's creator."""

    def remembered(self) -> set[type]:
        """Return the classes of the objects that the session has in memory."""

    def functions_that_may_read(self, names: Collection[str]) -> Collection[str]:
        """Return those of the database's functions whose reads are not known."""

    def has_hidden_changes(self) -> bool:
        """Return whether triggers saw a change of this transaction that nobody knows yet."""

    def settle(self, tags: Collection[str]) -> None:
        """Settle what other writers have left behind."""


class ReadingScope(ComputingScope, Protocol):
    """What the read path uses of a request scope."""

    @property
    def tier(self) -> MutableMapping[Any, TierEntry]:
        """The request tier."""

    def keep(self, key: Any, entry: TierEntry) -> None:
        """Keep a value in the request tier, until its tags change."""


class Transaction(Protocol):
    """What a request scope uses of the write path of one database transaction."""

    #: What the transaction has changed so far.
    tags: set[str]

    @property
    def on_replica(self) -> bool:
        """Whether it reads from a replica."""

    def may_have_changes(self) -> bool:
        """Return whether triggers may know of changes that the statements do not show."""

    def changed(self, tags: Collection[str]) -> None:
        """Collect tags that have changed."""


class ChangedScope(Protocol):
    """What those use of a request scope who tell it of changes."""

    schema: str

    def changed(self, tags: Collection[str]) -> None:
        """Collect tags that have changed, for every transaction in progress."""


class WritingScope(Protocol):
    """What the write path of a database transaction uses of its request scope."""

    schema: str
    #: Tables that statements of the present flush have changed; None outside of one.
    flushed_tables: set[str] | None
    returned: dict[str, str]
    computed: dict[str, str]

    @property
    def cache(self) -> WritingCache:
        """Whose scope it is."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction."""

    def take_second_snapshot(self) -> None:
        """Find out what has changed while the view was taken."""

    def end_quarantine(self, connection: Connection, beginning: Transaction) -> None:
        """End the tenant's quarantine, if it may end."""

    def transaction_begun(self, transaction: Transaction) -> None:
        """Hear that the transaction has its view."""

    def transaction_ended(self, transaction: Transaction) -> None:
        """Hear that the transaction has ended, one way or another."""

    def record(self, statement: Statement) -> None:
        """Add what a statement reads to the run in progress."""

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """Hear that a flush changed tables without an object that stands for the change."""

    def drop(self, tags: Collection[str]) -> None:
        """Drop what the request tier has that depends on these tags."""
