"""Tells what a statement touches, if it can be understood, on PostgreSQL.

A statement is understood if SQLAlchemy compiled it, its tables are plain ones, and its functions
are PostgreSQL's own. The notes of the compiler and the catalog then say all. Any other statement
is unclear: only the database can tell what it has touched; see :mod:`.inquiries`. The text of a
statement is no evidence, and is not looked at, with one exception: a text that begins with the
end of a transaction is refused before it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.exc import SQLAlchemyError

from ..errors import TextualControlError
from .cascades import affected
from .catalog import Catalog, Catalogs
from .notes import Notes, Relation, is_of_objects, notes_of
from .protocols import Scope, Statement

#: The begin of a text that begins or ends a transaction. Comments may come before it.
CONTROL = re.compile(
    r'(\s|--[^\n]*\n|/\*.*?\*/)*'
    r'((ABORT|BEGIN|COMMIT|END|START)\b|ROLLBACK\b(?!\s+(WORK\s+|TRANSACTION\s+)?TO\b)'
    r'|PREPARE\s+TRANSACTION\b)',
    re.IGNORECASE | re.DOTALL,
)

CONTROL_REFUSED = (
    'A statement begins or ends the transaction by its text, and its outcome would not be '
    'known: use commit(), rollback() or begin() of the session or connection'
)


OTHER_PATH = "the search path of the connection does not begin with the tenant's schema"


class Understanding:
    """Finds out what statements touch; made by a database, used by all threads.

    :param catalogs: the definitions of tables and functions.
    :param names_of: returns the metadata's names of a relation in the eyes of a tenant; none
        for a relation that lies elsewhere.
    """

    def __init__(
        self, catalogs: Catalogs, names_of: Callable[[Relation, str], frozenset[str]]
    ) -> None:
        self._catalogs = catalogs
        self._names_of = names_of

    def statement(
        self,
        connection: Connection,
        scope: Scope,
        sql: str,
        context: ExecutionContext | None,
        is_placed: bool = True,
    ) -> Statement:
        """Return what a statement touches that is about to be executed.

        :param context: as in SQLAlchemy's event ``before_cursor_execute``.
        :param is_placed: True if names without schema are looked up in the scope's schema.
        :raises TextualControlError: if its text begins or ends the transaction.
        """
        notes = notes_of(context)
        if notes is None or context is None:
            refuse_control(sql)
            return Statement(unclear='SQLAlchemy did not compile it')
        if notes.unclear is not None:
            refuse_control(sql)
            return _unclear(notes, notes.unclear)
        try:
            catalog = self._catalogs.catalog(connection, scope)
            translated = context.execution_options.get('schema_translate_map') or {}
            of_objects = is_of_objects(context)
            key = of_objects, is_placed, *translated.items()
            compiled: Any = context.compiled
            known = catalog.statements.get(compiled)
            found = known.get(key) if known is not None else None
            if found is None:
                relations = _Relations(notes, translated, scope.schema)
                if relations.unqualified and not is_placed:
                    return _unclear(notes, OTHER_PATH)
                self._catalogs.know_relations(connection, catalog, relations.all)
                self._catalogs.know_functions(connection, catalog, notes.functions)
                found = self._understand(catalog, notes, relations, scope.schema)
                found = found._replace(of_objects=of_objects)
                catalog.statements.setdefault(compiled, {})[key] = found
            return found
        except SQLAlchemyError as error:
            # the transaction has failed, or the definitions may not be read
            return _unclear(notes, f'the catalog could not be read ({error})')

    def _understand(
        self, catalog: Catalog, notes: Notes, relations: _Relations, tenant: str
    ) -> Statement:
        if catalog.deviates is not None:
            return _unclear(notes, f'the database has {catalog.deviates}')
        unclear, unrepeatable = catalog.explain(notes.functions)
        for relation in relations.all:
            if (reason := catalog.relations[relation].is_more) is not None:
                unclear = f'{relation.name} {reason}'
        changed = affected(
            catalog.relations, relations.writes, relations.deletes, relations.updates
        )
        if unclear is not None or changed is None:
            return _unclear(notes, unclear or 'tables that it changes have triggers or the like')
        reads, reads_elsewhere = self.named(relations.reads, tenant)
        writes, _ = self.named(relations.writes, tenant)
        cascades, _ = self.named(changed, tenant)
        _, writes_elsewhere = self.named(changed | relations.writes, tenant)
        return Statement(
            reads=reads,
            writes=writes,
            cascades=cascades,
            reads_elsewhere=reads_elsewhere,
            writes_elsewhere=writes_elsewhere,
            unrepeatable='it locked rows (FOR UPDATE)' if notes.locks else unrepeatable,
        )

    def named(
        self, relations: Iterable[Relation], tenant: str
    ) -> tuple[frozenset[str], frozenset[Relation]]:
        """Return the metadata's names of relations, and those relations that lie elsewhere."""
        names: set[str] = set()
        elsewhere: set[Relation] = set()
        for relation in relations:
            found = self._names_of(relation, tenant)
            names |= found
            if not found:
                elsewhere.add(relation)
        return frozenset(names), frozenset(elsewhere)


class _Relations:
    """The relations of a statement's notes, with the schemas that an execution gives them."""

    def __init__(self, notes: Notes, translated: dict[str | None, str], tenant: str) -> None:
        #: True if the search path tells where one of them lies.
        self.unqualified = False

        def placed(relation: Relation) -> Relation:
            schema = translated.get(relation.schema, relation.schema)
            self.unqualified = self.unqualified or schema is None
            return Relation(schema or tenant, relation.name)

        self.reads = set(map(placed, notes.reads))
        self.writes = set(map(placed, notes.writes))
        self.deletes = set(map(placed, notes.deletes))
        self.updates = {(placed(relation), column) for relation, column in notes.updates}
        self.all = self.reads | self.writes


def refuse_control(sql: str) -> None:
    """Raise :class:`TextualControlError` if a text begins with the end of a transaction.

    This is only the earliest moment to tell: a text that ends the transaction further on is
    noticed after it was executed.
    """
    if CONTROL.match(sql):
        raise TextualControlError(CONTROL_REFUSED)


def _unclear(notes: Notes, reason: str) -> Statement:
    return Statement(
        unclear=reason, unrepeatable='it locked rows (FOR UPDATE)' if notes.locks else None
    )
