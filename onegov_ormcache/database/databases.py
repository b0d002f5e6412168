"""Several databases as one, for hosts that have several engines.

A tenant lies in one of them. This module does not know the kinds of databases.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from ..errors import ConfigurationError
from .oracle import PostgresOracle
from .outbox import Outbox
from .protocols import Dialect, Inquiry, Scope, View
from .tables import Tables


class Database(Protocol):
    """A database, or several, as an observer and its users see it."""

    @property
    def has_transaction_ids(self) -> bool:
        """True if it can be asked whether a transaction has ended."""

    @property
    def address(self) -> str:
        """Where it is, for messages: its URL without password."""

    def know(self, tables: Tables) -> None:
        """Take the tables that statements may name."""

    def engine(self, schema: str) -> Engine:
        """Return the engine of a schema."""

    def engines(self) -> list[Engine]:
        """Return all engines made so far."""

    def on_engine(self, watch: Callable[[Engine, Dialect], None]) -> None:
        """Call ``watch`` with each engine, those made later included."""

    def check(self) -> None:
        """Check that it can be reached.

        :raises DatabaseUnreachable: if it can't be reached.
        """

    def claim(self) -> bool:
        """Claim it for this process alone; return False if it is claimed already."""

    def has_lost_claim(self) -> bool:
        """Return whether another process may have claimed it since :meth:`claim`, because the
        database has given the claim up."""

    def claim_again(self) -> bool:
        """Claim again what was lost; return False if another process has claimed it."""

    def dispose(self, close: bool = True) -> None:
        """End what the package has opened, and give the claim up.

        :param close: False in a forked child, whose parent goes on.
        """

    def begin_again(
        self, connection: Connection, scope: Scope
    ) -> tuple[View, Inquiry] | None:
        """Begin a transaction that has done nothing yet a second time; None if not possible."""

    def leave(self, connection: Connection) -> bool:
        """Roll back what was asked before a transaction has its view; False if not possible."""

    def assign_id(self, connection: Connection) -> None:
        """Give the transaction an id, if it has none yet."""

    def identities(self, places: Collection[str]) -> dict[str, str]:
        """Return the identities of schemas that a transaction can change."""

    def oracle(self, connection: Connection) -> PostgresOracle | None:
        """Return an object that answers questions about transactions; None without ids."""

    def is_replica(self, connection: Connection) -> bool:
        """Return whether the server is a replica, which may lag behind."""

    def is_conflict(self, error: BaseException) -> bool:
        """Return whether a new attempt of the transaction may resolve the error."""

    def list_schemas(self) -> list[str]:
        """Return all schemas, sorted."""

    def outboxes(self) -> Sequence[Outbox]:
        """Return the outboxes of all tenants, by database; none if it has no outboxes."""

    def outbox_at(self, connection: Connection) -> Outbox | None:
        """Return the outboxes of the tenants of a connection; None if it has none."""


class Databases:
    """The databases of several engines, each with an adapter of its own.

    Made by :func:`~.hosts.observe`; used by all threads.

    :param databases: the adapters.
    """

    def __init__(self, databases: Sequence[Database]) -> None:
        self._databases = databases
        self._of_engine = {each.engines()[0].pool: each for each in databases}
        # by tenant, the adapter of the database in which it lies
        self._of_schema: dict[str, Database] = {}

    @property
    def has_transaction_ids(self) -> bool:
        # a doubt that stays is settled in any case
        return any(each.has_transaction_ids for each in self._databases)

    @property
    def address(self) -> str:
        return ', '.join(each.address for each in self._databases)

    def at(self, connection: Connection) -> Database:
        """Return the database of a connection."""
        pool = connection.engine.pool
        found = self._of_engine.get(pool)
        if found is None:  # an engine makes another pool when it is disposed of
            self._of_engine = {each.engines()[0].pool: each for each in self._databases}
            found = self._of_engine[pool]
        return found

    def place(self, schema: str, database: Database) -> None:
        """Note in which database a tenant lies.

        :raises ConfigurationError: if it lies in another one, too.
        """
        known = self._of_schema.setdefault(schema, database)
        if known is not database and place_of(known) != place_of(database):
            raise ConfigurationError(
                f'schema_of gave {schema!r} for connections of two databases, '
                f'{known.engines()[0]!r} and {database.engines()[0]!r}: give the tenants of each '
                'other names'
            )

    def know(self, tables: Tables) -> None:
        for each in self._databases:
            each.know(tables)

    def engine(self, schema: str) -> Engine:
        return self._of_schema.get(schema, self._databases[0]).engine(schema)

    def engines(self) -> list[Engine]:
        return [engine for each in self._databases for engine in each.engines()]

    def on_engine(self, watch: Callable[[Engine, Dialect], None]) -> None:
        for each in self._databases:
            each.on_engine(watch)

    def check(self) -> None:
        for each in self._databases:
            each.check()

    def claim(self) -> bool:
        claimed: list[Database] = []
        for each in self._databases:
            if not each.claim() and not any(place_of(each) == place_of(c) for c in claimed):
                for other in claimed:
                    other.dispose()
                return False
            claimed.append(each)
        return True

    def has_lost_claim(self) -> bool:
        return any(each.has_lost_claim() for each in self._databases)

    def claim_again(self) -> bool:
        return all(each.claim_again() for each in self._databases)

    def dispose(self, close: bool = True) -> None:
        for each in self._databases:
            each.dispose(close)

    def begin_again(
        self, connection: Connection, scope: Scope
    ) -> tuple[View, Inquiry] | None:
        return self.at(connection).begin_again(connection, scope)

    def leave(self, connection: Connection) -> bool:
        return self.at(connection).leave(connection)

    def assign_id(self, connection: Connection) -> None:
        self.at(connection).assign_id(connection)

    def identities(self, places: Collection[str]) -> dict[str, str]:
        found: dict[str, str] = {}
        for each in self._databases:
            own = [p for p in places if self._of_schema.get(p, each) is each]
            found |= each.identities(own)
        return found

    def oracle(self, connection: Connection) -> PostgresOracle | None:
        return self.at(connection).oracle(connection)

    def is_replica(self, connection: Connection) -> bool:
        return self.at(connection).is_replica(connection)

    def is_conflict(self, error: BaseException) -> bool:
        return any(each.is_conflict(error) for each in self._databases)

    def outboxes(self) -> Sequence[Outbox]:
        return [outbox for each in self._databases for outbox in each.outboxes()]

    def outbox_at(self, connection: Connection) -> Outbox | None:
        return self.at(connection).outbox_at(connection)

    def list_schemas(self) -> list[str]:
        return sorted({schema for each in self._databases for schema in each.list_schemas()})


def place_of(database: Database) -> tuple[Any, ...]:
    """Return where a database is, as its engine's URL says."""
    url = database.engines()[0].url
    return url.host, url.port, url.database, url.query.get('host')
