"""Protocols: the parts of one another that read path, write path, scope and cache may use.

Each is written against a protocol of this module and not against the other's class. So a
signature says what a function may touch, and no modules import each other in a circle. A
request scope is a :class:`ReadingScope`, a :class:`ChangedScope` and a
:class:`WritingScope`; a write path is a :class:`Transaction`; a cache is a
:class:`ScopeCache`. This module has no behaviour of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from ..database.notes import Relation
from ..database.observer import Observer
from ..database.protocols import Inquiry, Reads, Statement, View
from ..database.session_manager import SessionManager
from ..statistics.collector import Statistics
from ..statistics.fields import Counts
from ..tags.settling import Settler
from ..tags.snapshot import Snapshot, Stamp, TagStore
from ..tiers.claims import Claim
from ..tiers.process import ProcessTier, Slot
from ..tiers.request import TierEntry
from ..tiers.serializer import Serializer
from ..tiers.shared import Fill, SharedTier
from .properties import Call, Declaration, Property
from .published_tags import PublishedTags
from .recording import CacheEvent
from .recovery import Recovery
from .rows import RowPolicies, RowPolicy
from .runs import Run
from .settings import OrmCacheSettings
from .story import Stories, Story

# parts of a cache


class PropertyRegistry(Protocol):
    """The properties of a cache."""

    @property
    def function_tags(self) -> frozenset[str]:
        """The tags of all properties whose policies are functions."""

    @property
    def rows(self) -> RowPolicies:
        """The policies for rows."""

    @property
    def known_tags(self) -> frozenset[str]:
        """The tags whose policies this application judges itself."""

    def spelled_out(self, tags: Iterable[str]) -> frozenset[str]:
        """Return tags by which values are found, see :meth:`.Registry.spelled_out`."""

    def property_of(self, declaration: Declaration, owner: type) -> Property:
        """Return the property of a declaration on a class; bind it if it is new."""

    def with_shared(self, tags: Collection[str]) -> frozenset[str]:
        """Return the tags, and those of shared tables that cascade into their tables."""

    def of_metadata(self, tags: Collection[str]) -> set[str]:
        """Return those of the tags that are of tables which the metadata has."""


class AnyCache(Protocol):
    """The part of a cache that both paths use."""

    @property
    def registry(self) -> PropertyRegistry:
        """The cache's properties."""

    @property
    def settings(self) -> OrmCacheSettings:
        """The validated settings."""

    @property
    def recorder(self) -> Callable[[CacheEvent], None] | None:
        """The function to call with each event; None if nobody records."""

    @property
    def statistics(self) -> Statistics:
        """What the cache has done, in numbers."""

    @property
    def is_disabled(self) -> bool:
        """True while a test has turned the cache off."""


class AuditedScope(Protocol):
    """The part of a request scope that an auditor of its hits uses."""

    schema: str

    #: The hits that are recomputed when it has closed.
    audited: tuple[Any, ...]

    @property
    def runs(self) -> Sequence[Run]:
        """The runs in progress, the innermost last."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction."""


class HitAuditor(Protocol):
    """Recomputes a share of the hits."""

    def note(self, scope: AuditedScope, call: Call, entry: TierEntry) -> None:
        """Take notice of a hit of the process tier or the shared tier."""

    def recompute(self, scope: AuditedScope) -> None:
        """Recompute the hits of a scope that has closed."""


class ReadingCache(AnyCache, Protocol):
    """The part of a cache that the read path uses."""

    @property
    def auditor(self) -> HitAuditor | None:
        """Recomputes a share of the hits; None if none is."""

    @property
    def serializer(self) -> Serializer:
        """The serializer, which turns values into bytes and back."""

    @property
    def shared_tier(self) -> SharedTier:
        """The values of all processes, and the locks under which they are computed."""

    def claim(self, schema: str, key: str, tags: Collection[str], snapshot: Snapshot) -> Claim:
        """Return a claim to compute a value with these tags."""

    def fill_many(self, schema: str, fills: Sequence[Fill], holding: Stamp) -> list[bool]:
        """Store several values in the shared tier, each if its stamp holds; return for each
        whether it was stored.

        :param holding: other versions that must hold for each, too.
        :raises StoreUnreachable: if the tag store or the shared tier can't be reached.
        """


class WritingCache(AnyCache, Protocol):
    """The part of a cache that the write path uses."""

    @property
    def observer(self) -> Observer:
        """The observer, which knows the tables, foreign keys and database."""

    @property
    def tags(self) -> TagStore:
        """The tag store, which keeps versions and doubts."""

    @property
    def recovery(self) -> Recovery | None:
        """What must be done after an outage; None if nothing can be lost."""

    @property
    def published(self) -> PublishedTags:
        """Tells which tags have got new versions."""

    def places(self, schema: str) -> tuple[str, ...]:
        """Return the places of a tenant's tags: the schemas that their versions belong to."""

    def by_place(self, schema: str, tags: Collection[str]) -> dict[str, list[str]]:
        """Return a tenant's tags by their places."""

    def renew_later(self, *schemas: str) -> bool:
        """Give these schemas a new birth, as soon as the tag store can be reached."""


class ScopeCache(ReadingCache, WritingCache, Protocol):
    """The part of a cache that a request scope uses, and a descriptor that has found one."""

    @property
    def stories(self) -> Stories:
        """Makes the stories of scopes."""

    @property
    def session_manager(self) -> SessionManager:
        """The maker of the scopes' sessions.

        :raises ConfigurationError: if a host makes them.
        """

    @property
    def process_tier(self) -> ProcessTier:
        """The values of this process."""

    @property
    def settler(self) -> Settler:
        """The settler of doubts and quarantines that writers have left."""

    def snapshot(self, schema: str) -> Snapshot:
        """Return the tenant's present snapshot."""

    def identify(
        self, schema: str, identities: Mapping[str, str], snapshot: Snapshot, *, replica: bool
    ) -> bool:
        """Work with the versions of these identities; return False if the snapshot is one of
        theirs.

        :raises StoreUnreachable: if the store can't be reached.
        """

    @property
    def is_reached(self) -> bool:
        """True once the servers were reached."""

    def reach_servers(self) -> None:
        """Connect to the servers, if that was not done yet."""

    def refuse_fork(self) -> None:
        """Raise an error in a fork of the process that keeps versions in its memory.

        :raises SecondProcessError: there.
        """

    def enter_process(self) -> None:
        """Work in this process, which may be a fork; called when a scope opens.

        :raises SecondProcessError: in a fork of the process that keeps versions in its memory.
        """

    def is_cache_of(self, instance: Any) -> bool:
        """Return whether the cached properties of an object belong to this cache."""

    def resolve(self, declaration: Declaration, instance: Any) -> tuple[Declaration, type]:
        """Return the declaration that counts when this one is read on an object, and the class
        whose property it is."""

    def find(self, instance: Any, name: str) -> Declaration | None:
        """Return the cached property of this name that an object has; None if it has none."""

    def context_key(self, instance: Any) -> str:
        """Return the part of a value's key that says where the object belongs, beside its
        class."""

    def watching(self, instance: Any) -> AbstractContextManager[None]:
        """Return a context manager in which the creator of an orm-cached property of the object
        runs."""


# parts of a request scope, and of its write paths


class PageScope(Protocol):
    """The part of a request scope that tells whether its values belong to one moment."""

    schema: str
    returned: dict[str, str]
    computed: dict[str, str]

    @property
    def cache(self) -> ScopeCache:
        """The cache that the scope belongs to."""

    @property
    def observer(self) -> Observer:
        """The observer, which has the oracle of a connection."""

    @property
    def keeps_view(self) -> bool:
        """True if a transaction in progress has one view for all its statements."""

    @property
    def on_replica(self) -> bool:
        """True if a transaction in progress reads from a replica."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction."""

    def connection(self) -> Connection:
        """Return the connection of the scope's own session."""


class Page(Protocol):
    """The values that a transaction has read, of which each is checked."""

    def found(self, tags: Collection[str]) -> None:
        """Check a cached value of the snapshot, before it is returned."""

    def computed(self, tags: Collection[str]) -> None:
        """Check a value that was computed and not stored."""


class LookupScope(Protocol):
    """The part of a request scope that a search for a value in the tiers uses, also to find
    out whether this transaction may use the value."""

    schema: str
    #: The versions, by tag, of the cached values that this transaction has read.
    returned: dict[str, str]
    #: What it has counted since it last handed that over.
    counts: Counts
    #: What the cache does for it; None if nobody listens.
    story: Story | None
    #: False if what it computes is no part of the cache's work.
    is_counted: bool
    #: How many hits each hit of the request tier stands for; 0: they are not counted.
    weight: int

    @property
    def cache(self) -> ReadingCache:
        """The cache that the scope belongs to."""

    @property
    def torn_pages(self) -> Page:
        """The check that all values of this transaction belong to one moment."""

    @property
    def snapshot_number(self) -> int:
        """The number of the present snapshot; it grows by one when a snapshot ends."""

    @property
    def process_tier(self) -> MutableMapping[str, Slot]:
        """The tenant's part of the process tier."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction."""

    def blocks(self, tags: Collection[str]) -> bool:
        """Return whether values with these tags must be read from the database now."""

    def why_blocked(self, tags: Collection[str]) -> str:
        """Return why they must, in a word or two."""

    def look_again(self, tags: Collection[str]) -> None:
        """Wait a moment and end the snapshot, if one of these tags is in doubt in it, and the
        snapshot is not in use yet."""

    def store_lost(self) -> None:
        """Treat the tag store as unreachable until the snapshot ends."""


class ComputingScope(LookupScope, Protocol):
    """The part of a request scope that a creator's run uses, also to find out what its value
    depends on."""

    #: The versions, by tag, of what creators have read from the database in this
    #: transaction.
    computed: dict[str, str]

    @property
    def is_in_transaction(self) -> bool:
        """True if the scope holds a connection of the database."""

    @property
    def has_strayed(self) -> bool:
        """True if a transaction in progress may use and store no value."""

    #: True while the scope holds the claims of several values: then it does not wait for others.
    is_searching: bool

    @property
    def runs(self) -> Sequence[Run]:
        """The runs in progress, the innermost last."""

    @property
    def on_replica(self) -> bool:
        """True if a transaction in progress reads from a replica."""

    @property
    def computing(self) -> Run | None:
        """The innermost run of an orm-cached property's creator; None if there is none."""

    def session(self) -> Session:
        """Return the session of the run in progress, or else the scope's own."""

    def connection(self) -> Connection:
        """Return the connection of the scope's own session."""

    def run(self, *calls: Call) -> AbstractContextManager[Run]:
        """Record the reads of the block as one run of a property's creator."""

    def names_of(self, relation: Relation) -> frozenset[str]:
        """Return the metadata's names of a relation; none if it is not the tenant's."""

    def ask(self) -> None:
        """Ask the database what this scope's unclear statements have changed so far."""

    def settle(self, tags: Collection[str]) -> None:
        """Settle other writers' doubts of these tags, and end a quarantine that may end."""


class ReadingScope(ComputingScope, AuditedScope, Protocol):
    """The part of a request scope that the read path uses."""

    @property
    def tier(self) -> MutableMapping[Any, TierEntry]:
        """The request tier."""

    def keep(self, call: Call, entry: TierEntry) -> None:
        """Keep a value in the request tier."""

    def searching(self) -> AbstractContextManager[None]:
        """Hold the claims of several values while a block computes them."""


class Transaction(Protocol):
    """The part of a database transaction's write path that its request scope uses."""

    #: The tags that the transaction has changed so far.
    tags: set[str]

    #: The reason why the transaction may use and store no value; None if it may.
    strayed: str | None

    @property
    def keeps_view(self) -> bool:
        """True if the transaction has one view for all its statements."""

    @property
    def on_replica(self) -> bool:
        """True if the transaction reads from a replica."""

    #: True if it has executed an unclear statement.
    was_unclear: bool

    #: The number of the scope's snapshot when the transaction began.
    snapshot_number: int

    @property
    def is_gone(self) -> bool:
        """True if the transaction has ended with its connection, and nobody was told."""

    def has_changed(self, tags: Collection[str]) -> bool:
        """Return whether one of these tags was changed, or may have been changed."""

    def take(self) -> None:
        """Take what nobody has announced; on SQLite, what cursors of the driver have done."""

    def ask(self) -> None:
        """Ask the database what unclear statements have changed so far, if there are any."""

    def watch_reads(self) -> object:
        """Begin to watch what is read; return what :meth:`reads` needs."""

    def reads(self, since: object) -> Reads:
        """Return what was read since :meth:`watch_reads`, as the database tells it."""

    def may_have_changes(self) -> bool:
        """Return whether triggers may know of changes that the statements do not show."""

    def changed(self, tags: Collection[str]) -> None:
        """Collect changed tags."""

    def changed_without_objects(self, tables: Iterable[str]) -> None:
        """Collect the tags of policies that can't be asked about a change of these tables."""

    def rows_changed(
        self, policy: RowPolicy, buckets: Collection[int] | None, loaded: Collection[int] = ()
    ) -> None:
        """Collect the tags of changed rows."""

    def has_all_rows(self, policy: RowPolicy) -> bool:
        """Return whether all rows of a policy count as changed."""

    def marked(self, tags: Collection[str]) -> None:
        """Collect the tags of changes that are only reported; the transaction has an id."""

    def works_on(self, connections: Collection[Connection]) -> bool:
        """Return whether its connection is one of these."""

    def last_flush_ended(self) -> None:
        """Send the doubt, if what the session has flushed is all that it commits."""

    def hold(self, versions: Mapping[str, str]) -> None:
        """Take the versions that were read with a snapshot that ends before the transaction."""


class ChangedScope(Protocol):
    """The part of a request scope that is told of changed tags."""

    schema: str

    def changed(self, tags: Collection[str]) -> None:
        """Collect changed tags for every transaction in progress."""

    def rows_changed(
        self, policy: RowPolicy, buckets: Collection[int] | None, loaded: Collection[int] = ()
    ) -> None:
        """Collect the tags of changed rows for every transaction in progress."""

    def has_all_rows(self, policy: RowPolicy) -> bool:
        """Return whether all rows of a policy count as changed in each transaction in progress."""


class WritingScope(Protocol):
    """The part of a request scope that the write path of a database transaction uses."""

    schema: str
    snapshot_number: int
    returned: dict[str, str]
    computed: dict[str, str]
    #: What the cache does for it; None if nobody listens.
    story: Story | None

    @property
    def is_in_one_transaction(self) -> bool:
        """True if exactly one database transaction is open."""

    def flushed_on(self, connection: Connection | None) -> set[str] | None:
        """Return the tables that statements of the present flush have changed.

        :return: None outside of a flush, and if the flush does not use this connection.
        """

    def tells_all(self, connection: Connection | None) -> bool:
        """Return whether the statement that was just executed tells all that the session, which
        uses this connection, is about to commit."""

    @property
    def cache(self) -> WritingCache:
        """The cache that the scope belongs to."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of this transaction."""

    def identify(
        self, connection: Connection, beginning: Transaction, view: View, inquiry: Inquiry
    ) -> tuple[View, Inquiry]:
        """Go on with the versions of the database that a transaction has begun in.

        :return: view and inquiry of the transaction, which may have begun again.
        :raises SnapshotConflict: if a cached value of another database was returned.
        """

    def take_second_snapshot(self) -> None:
        """Take a second snapshot, after a view that lasts; block the tags that differ."""

    def transaction_begun(self, transaction: Transaction) -> None:
        """Add a database transaction of this scope, which has taken its view."""

    def transaction_ended(self, transaction: Transaction) -> None:
        """Remove a database transaction that was committed, rolled back or lost."""

    def record(self, statement: Statement) -> None:
        """Add what a statement reads to the run in progress."""

    def unclear(self, transaction: Transaction, statement: Statement) -> None:
        """Let the run in progress find out what an unclear statement reads, before it is
        executed."""

    def changed_without_objects(self, tables: Collection[str]) -> None:
        """Collect the tags of all function policies, if a flush changed tables without objects."""

    def drop(self, tags: Collection[str]) -> None:
        """Drop the orm-cached values of the request tier that depend on these tags."""

    def drop_all(self) -> None:
        """Drop all orm-cached values of the request tier."""
