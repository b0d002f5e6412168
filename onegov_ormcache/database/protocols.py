"""The interfaces between transactions, those who listen to them, and the kinds of databases.

:mod:`.transactions` is written against them. Listeners and their scopes are defined elsewhere.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, Protocol

from sqlalchemy import Connection

from .statements import Statement


class View(Protocol):
    """A transaction's view of the database, described when the transaction began."""

    @property
    def lasts(self) -> bool:
        """True if all statements have the same view (REPEATABLE READ and SERIALIZABLE)."""

    @property
    def serializable(self) -> bool:
        """True under SERIALIZABLE."""

    @property
    def replica(self) -> bool:
        """True if the database is a replica, and may lag behind."""

    @property
    def triggers(self) -> bool:
        """True if the package's triggers see what the transaction changes, by any means."""


class Written(NamedTuple):
    """A transaction's id and changes, as the database reports them before COMMIT."""

    #: None if the transaction wrote nothing; '' if the database has no transaction ids.
    transaction_id: str | None
    #: The tables that triggers saw change, by schema and name. True if any of a table's
    #: changes was made by a function, a trigger or a cascade, and not by a statement of the
    #: client itself.
    tables: Mapping[tuple[str, str], bool]


class Listener(Protocol):
    """Is told of one transaction, from its begin to its end; made by a :class:`Scope`."""

    def begun(self, connection: Connection, view: View) -> None:
        """Called when the transaction has its search path and its view, before anything else
        is executed."""

    def executing(self, statement: Statement) -> None:
        """Called before a statement is executed."""

    def savepoint_lost(self) -> None:
        """Called when the transaction is rolled back to a savepoint."""

    def triggered(self, tables: Mapping[tuple[str, str], bool]) -> None:
        """Called with the tables that triggers saw change; see :attr:`Written.tables`."""

    def committing(self, transaction_id: Callable[[], str | None]) -> None:
        """Called directly before COMMIT (or PREPARE); an error raised here prevents it.

        :param transaction_id: asks the database for the transaction's id, and returns '' if
            the database has no ids, None if the transaction wrote nothing. If triggers saw
            changes, it calls :meth:`triggered` before it returns.
        """

    def committed(self) -> None:
        """Called when COMMIT has returned."""

    def rolled_back(self) -> None:
        """Called when it is certain that nothing of the transaction was committed."""

    def lost(self) -> None:
        """Called when it is not known whether the transaction was committed."""


class Scope(Protocol):
    """The owner of transactions, which all work in its schema."""

    schema: str

    def transaction(self) -> Listener:
        """Return a listener for a new transaction; called before that takes its view."""


class Dialect(Protocol):
    """The part of a database that a :class:`Watch` uses; see ``postgres.py``, ``sqlite.py``."""

    def in_transaction(self, dbapi_connection: Any) -> bool:
        """Return whether the driver says that its connection is in a transaction."""

    def begin(self, connection: Connection, schema: str) -> View:
        """Bind the transaction to the schema, take its view and return it."""

    def written(self, connection: Connection) -> Written:
        """Return what the transaction has written; called before COMMIT."""

    def autocommits(self, connection: Connection) -> bool:
        """Return whether each statement of the connection commits itself."""

    def refused(self, error: BaseException) -> bool:
        """Return whether an error at COMMIT proves that nothing was committed."""
