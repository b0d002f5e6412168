"""Asks PostgreSQL what one of its transactions has read and changed, by whatever means.

PostgreSQL locks each relation that a transaction touches until the transaction ends, and lists
the locks in ``pg_locks``. So the list tells what no statement tells: what functions, triggers,
rules, views and the driver's own cursors have touched. Locks do not show everything: a rollback
to a savepoint gives them back, and some definitions are changed without a lock. For these there
are the counters of the connection's statistics, and a setting that marks the transaction.

A question costs 0.1 to 0.4 ms, so the callers ask only where nobody else knows. This module does
not know what is done with the answers.
"""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol

from cachetools import LRUCache
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .catalog import Catalog, Catalogs, Definition
from .driver import glance, is_failed
from .identity import identity_parameters, identity_query
from .locks import Locks
from .names import INTERNAL
from .oracle import key_of
from .probes import CODE_SCHEMAS, END, WATCH_READS, Probes
from .protocols import NO_NAMES, Changes, Reads, Scope
from .trigger_reports import parse_change, parse_rows

#: The begin of a SET of the search path, with its first schema.
FIRST_NAME = re.compile(
    r'\s*SET\s+(?:SESSION\s+|LOCAL\s+)?search_path\s*(?:=|TO\b)\s*'
    r'(?:"((?:[^"]|"")+)"|\'([^\',]+)\'|([a-z_][\w$]*))',
    re.IGNORECASE,
)

#: The version of PostgreSQL that has ``pg_stat_force_next_flush()``.
FLUSHES_STATISTICS = (15,)

#: SQLSTATE of each statement in a transaction that has failed: COMMIT would commit nothing.
FAILED_TRANSACTION = '25P02'

#: The lowest oid of what is not PostgreSQL's own.
FIRST_OWN_OID = 16384

#: The schemas of PostgreSQL's own relations.
SYSTEM = ('pg_catalog', 'information_schema')

#: PostgreSQL's own tables that the package reads, maybe in the same transaction.
OF_CATALOG = frozenset(
    (
        'pg_attrdef', 'pg_attribute', 'pg_cast', 'pg_class', 'pg_collation', 'pg_constraint',
        'pg_database', 'pg_depend', 'pg_enum', 'pg_index', 'pg_inherits', 'pg_language',
        'pg_locks', 'pg_namespace', 'pg_operator', 'pg_policy', 'pg_proc', 'pg_rewrite',
        'pg_trigger', 'pg_type',
    )
)  # fmt: skip

#: Letters of the kinds of relations that have rows, or show them: tables, partitioned and
#: foreign tables, views and materialised views.
WITH_ROWS = ('r', 'p', 'f', 'v', 'm')

ENDED_UNSEEN = (
    'The transaction was ended, and another one begun, by the text of a statement or by the '
    'driver: use commit(), rollback() or begin() of the session or connection'
)

STRAYED = 'the search path, time zone, date style or role was changed in the transaction'


class PostgresView(NamedTuple):
    """A transaction's view, as PostgreSQL described it when the transaction began.

    See :class:`~.protocols.View`.
    """

    isolation: str
    replica: bool
    triggers: bool = False
    strayed: str | None = None
    identities: Mapping[str, str] = MappingProxyType({})

    @property
    def lasts(self) -> bool:
        return self.isolation in ('repeatable read', 'serializable')

    @property
    def serializable(self) -> bool:
        return self.isolation == 'serializable'


class Baseline(NamedTuple):
    """What :meth:`PostgresInquiry.watch_reads` finds, with which the end is compared."""

    locks: Locks
    #: The oids of tables and indexes, each with that of its table.
    oids: dict[int, int]
    counters: list[int]
    changes: int
    counts: bool


class Definitions(Protocol):
    """The part of a database that knows definitions, and what others call relations."""

    catalogs: Catalogs
    #: What a SET of a host makes of the settings, by its text and the settings before.
    settings: LRUCache[tuple[str, str], str]

    def committed(self, oids: Collection[int]) -> dict[int, Definition]:
        """Return the definitions of relations as others see them, not this transaction."""


class PostgresInquiry:
    """Asks about one transaction; see :class:`~.protocols.Inquiry`.

    Made by :meth:`.Postgres.begin`, used as long as the transaction.

    :param key: the transaction's key, on which it holds a lock.
    :param probes: the questions about transactions of its kind.
    :param path: the search path at the begin, as the probes tell it.
    :param surroundings: :data:`~.probes.SURROUNDINGS` at the begin.
    """

    def __init__(
        self,
        connection: Connection,
        scope: Scope,
        definitions: Definitions,
        marker: str,
        key: str,
        probes: Probes,
        path: str,
        surroundings: str,
    ) -> None:
        self._connection = connection
        self._scope = scope
        self._known = definitions
        self._marker = marker
        self.key = key
        self._probes = probes
        #: The search path, as the probes tell it.
        self.path = path
        self._surroundings = surroundings

    @property
    def has_failed(self) -> bool:
        return is_failed(self._connection.connection.dbapi_connection)

    def take(self) -> None:
        return None

    def follow(self, setting: str) -> str | None:
        """Learn what a SET of the host has changed.

        :param setting: its text, with its parameters.
        :return: why the transaction has strayed; None if at most the search path is another.
        """
        before = self._setting()
        present = self._known.settings.get((setting, before))
        if present is None:
            try:
                present = self._glance()[2]
            except Exception:
                return STRAYED  # the SET has failed, and with it the transaction
            if has_same_effect_always(setting, before, present):
                self._known.settings[setting, before] = present
        self.path = present.removesuffix(f'|{self._surroundings}')
        return None if present == self._setting() else STRAYED

    def identity(self, place: str) -> str:
        # with a lock by which the transaction is known to concern that schema, too; see `oracle`
        parameters = {**identity_parameters((place,)), 'key': key_of(place)}
        found = self._connection.exec_driver_sql(
            f'{identity_query()}, pg_advisory_xact_lock_shared(%(key)s::bigint)', parameters,
            execution_options=INTERNAL,
        )  # fmt: skip
        return str(found.one()[0])

    def changes(self) -> Changes:
        try:
            found = self._glance()
        except Exception:
            found = None  # the same question by way of SQLAlchemy raises an error that it knows
        if found == (None, self._marker, self._setting()):
            return Changes(None)
        return self._changes(self._ask(self._probes.question))

    def _glance(self) -> Any:
        return glance(self._connection.connection.dbapi_connection, self._probes.glance)

    def last_changes(self, is_unclear: bool) -> Changes:
        if not is_unclear:
            return self._changes(self._ask(END))
        row = self._ask(self._probes.last_question)
        if row[0] is not None and self._may_act_later(row):
            # triggers that would run within COMMIT run now, so that their changes are seen
            self._connection.exec_driver_sql(
                'SET CONSTRAINTS ALL IMMEDIATE', execution_options=INTERNAL
            )
            row = self._ask(self._probes.last_question)
        return self._changes(row)

    def watch_reads(self) -> Baseline:
        oids = self._known.catalogs.oids(self._connection, self._catalog())
        row = self._execute(WATCH_READS, oids)
        return Baseline(Locks.parse(row[0]), oids, row[1] or [], row[2] or 0, row[3])

    def reads(self, since: object) -> Reads:
        before = since
        assert isinstance(before, Baseline)
        row = self._execute(self._probes.reads, before.oids)
        locks = Locks.parse(row[0])
        wrote = bool(locks.changing - before.locks.changing) or (row[2] or 0) != before.changes
        unknowable = None
        if row[3] != self._marker:
            unknowable = ENDED_UNSEEN
        elif row[4] != self._setting():
            unknowable = STRAYED
        elif not before.counts:
            unknowable = 'the setting track_counts of PostgreSQL is off'
        elif wrote:
            unknowable = 'it changed the database'
        elif locks.locking - before.locks.locking:
            unknowable = 'it locked rows'
        counted = zip(before.oids.values(), row[1] or (), before.counters, strict=True)
        grown = {table for table, now, then in counted if now != then}
        # a lock that was held before may have been used again: of tables, the counters tell
        new = locks.reading - before.locks.reading
        definitions = self._definitions(
            new | grown | (locks.reading - set(before.oids.values())), locks
        )
        relations = {each.relation for each in definitions.values() if each.kind in WITH_ROWS}
        intact = row[3] == self._marker and row[4] == self._setting()
        return Reads(
            frozenset(relations),
            unknowable or self._unknowable(locks, before, definitions),
            wrote=wrote,
            wrote_nothing=intact and row[5] is None,
        )

    def _unknowable(
        self, locks: Locks, before: Baseline, definitions: dict[int, Definition]
    ) -> str | None:
        """Return why a value that depends on these relations can't be known to be valid.

        Those that have no counters may have been read again, however long they are locked.
        """
        uncounted = locks.reading - before.oids.keys()
        # large objects are locked as if they were changed
        system = {oid for oid in uncounted | locks.changing if oid < FIRST_OWN_OID}
        found = self._known.catalogs.by_oids(self._connection, system, SYSTEM)
        for definition in (*map(definitions.get, uncounted), *found.values()):
            if definition is None:
                continue
            schema, name = definition.relation
            if definition.is_temporary:
                return f'it read the temporary table {name!r}'
            if definition.kind in ('f', 'S'):
                return f'it read {name!r}, whose changes take no part in transactions'
            if schema in SYSTEM and definition.kind in WITH_ROWS and name not in OF_CATALOG:
                return f"it read {name!r}, a table of PostgreSQL's own"
        return None

    def _changes(self, row: Any) -> Changes:
        ended = ENDED_UNSEEN if row[1] != self._marker else None
        strayed = None if row[2] is None or row[2] == self._setting() else STRAYED
        tables = json.loads(row[3]) if row[3] else {}
        triggered = {parse_change(key): hidden for key, hidden in tables.items()}
        rows = json.loads(row[7]) if row[7] else {}
        locks = Locks.parse(row[4])
        definitions = self._definitions(locks.changing, locks)
        lasting = {
            oid: each
            for oid, each in definitions.items()
            if each.kind in WITH_ROWS and not each.is_temporary
        }
        redefining = locks.redefining & lasting.keys()
        # a relation that was renamed has two names, and one that was attached or detached is
        # shown by others than before
        before = self._known.committed(redefining) if redefining else {}
        every = [*lasting.values(), *before.values()]
        return Changes(
            transaction_id=row[0],
            relations=frozenset(each.relation for each in every).union(
                *(each.shown_by for each in every)
            ),
            redefined=frozenset(lasting[oid].relation.schema or '' for oid in redefining),
            # readers of a view may have named the tables that it showed, and not the view
            changed_code=row[5] > 0 or any(lasting[oid].kind == 'v' for oid in redefining),
            code_schemas=self._code_schemas() if row[5] > 0 else NO_NAMES,
            renamed_schemas=row[6] > 0,
            triggered=triggered,
            triggered_rows={
                each.relation: parse_rows(rows[name])
                for oid, each in lasting.items()
                if (name := ':'.join(map(str, each.relation))) in rows
                and oid not in redefining and tells_all_rows(each, lasting.values())
            },
            ended_unseen=ended,
            strayed=strayed,
        )

    def _code_schemas(self) -> frozenset[str]:
        found = self._connection.exec_driver_sql(CODE_SCHEMAS, execution_options=INTERNAL)
        schemas = frozenset(found.scalars())
        if (self._connection.dialect.server_version_info or ()) >= FLUSHES_STATISTICS:
            # the counters are those of the connection: the next transaction begins at zero
            self._connection.exec_driver_sql(
                'SELECT pg_stat_force_next_flush()', execution_options=INTERNAL
            )
        return schemas

    def _may_act_later(self, row: Any) -> bool:
        """Return whether a trigger may run within COMMIT that changes tables."""
        locks = Locks.parse(row[4])
        return any(each.deferred for each in self._definitions(locks.changing, locks).values())

    def _definitions(self, oids: Collection[int], locks: Locks) -> dict[int, Definition]:
        """Return the definitions of relations.

        Those that the transaction may have redefined are read anew, and are not remembered,
        because it may be rolled back.
        """
        own = frozenset(oid for oid in oids if oid >= FIRST_OWN_OID)
        catalogs, connection = self._known.catalogs, self._connection
        scope = self._scope
        found = catalogs.by_oids(
            connection, own - locks.redefining, scope.definitions(), scope.schema
        )
        kept = {oid: each for oid, each in found.items() if each is not None}
        kept |= catalogs.read(connection, own & locks.redefining)
        gone = own - kept.keys()
        return kept | (self._known.committed(gone) if gone else {})

    def _catalog(self) -> Catalog:
        return self._known.catalogs.catalog(self._connection, self._scope)

    def _setting(self) -> str:
        """Return what the probes tell of a transaction that has not strayed."""
        return f'{self.path}|{self._surroundings}'

    def _ask(self, question: str) -> Any:
        # without SQLAlchemy's compiler, which would cost time at each commit
        return self._connection.exec_driver_sql(question, execution_options=INTERNAL).one()

    def _execute(self, question: Any, oids: Collection[int]) -> Any:
        parameters = {'oids': list(oids)}
        return self._connection.execute(question, parameters, execution_options=INTERNAL).one()


def has_same_effect_always(setting: str, before: str, present: str) -> bool:
    """Return whether a SET has made the path, or left it, independently of which schemas exist.

    A path that begins with a schema that there is not yet has another effect when that was made.
    """
    if 'search_path' not in setting.lower():
        return before == present
    found = FIRST_NAME.match(setting)
    if found is None:
        return False
    quoted, literal, plain = found.groups()
    name = literal or (plain.lower() if plain else str(quoted).replace('""', '"'))
    return present.startswith(f'{name}|')


def tells_all_rows(table: Definition, changed: Iterable[Definition]) -> bool:
    """Return whether the triggers of a table see each change of its rows.

    A statement on a partition or child changes rows of its parents, too, without their triggers.

    :param changed: all that the transaction has changed.
    """
    is_shown = any(table.relation in each.shown_by for each in changed)
    return table.kind == 'r' and table.is_more is None and not is_shown


def has_failed(error: DBAPIError) -> bool:
    """Return whether the error of a question says that the transaction had failed before."""
    return getattr(error.orig, 'sqlstate', None) == FAILED_TRANSACTION


def new_marker() -> str:
    """Return a text by which a transaction is known again."""
    return secrets.token_hex(8)
