"""Tells what a statement touches, if it can be understood, on PostgreSQL.

A statement is understood if SQLAlchemy compiled it, its tables are plain ones, and its functions
are PostgreSQL's own. The notes of the compiler and the catalog then say all. Any other statement
is unclear: only the database can tell what it has touched; see :mod:`.inquiries`. The text of a
statement is no evidence, and is not looked at, with one exception: a text that begins with the
end of a transaction is refused before it is executed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.engine import ExecutionContext
from sqlalchemy.exc import SQLAlchemyError

from ..errors import TextualControlError
from .cascades import affected
from .catalog import Catalog, Catalogs
from .notes import Notes, Relation, is_of_objects, notes_of
from .protocols import Scope, Selection, Statement
from .selections import Plan, plan_of, selections
from .sessions import flushing
from .tables import Tables
from .values import fits

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
    :param tables: the tables that statements may name.
    """

    def __init__(self, catalogs: Catalogs, tables: Tables) -> None:
        self._catalogs = catalogs
        self._tables = tables

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
            if self._tables.watched and found.writes:
                return self._with_rows(catalog, notes, context, scope.schema, found)
            return found
        except SQLAlchemyError as error:
            # the transaction has failed, or the definitions may not be read
            return _unclear(notes, f'the catalog could not be read ({error})')

    def _with_rows(
        self,
        catalog: Catalog,
        notes: Notes,
        context: ExecutionContext,
        tenant: str,
        found: Statement,
    ) -> Statement:
        """Return a statement with what is asked for of its rows."""
        watched = watched_in(self._tables, found)
        if not watched:
            return found
        compiled: Any = context.compiled
        translated = context.execution_options.get('schema_translate_map') or {}
        key = tenant, *translated.items()
        plans = catalog.plans.setdefault(compiled, {})
        if key not in plans:
            plans[key] = plan = plan_of(compiled, notes)
            if plan is not None:
                relation = _Relations(notes, translated, tenant).placed(plan.relation)
                stored = catalog.relations[relation].stored
                plans[key] = plan.without(
                    lambda column, expected: not fits(stored.get(column), expected)
                )
        plan = plans[key]
        return found if plan is None else with_rows(found, watched, plan, context)

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
            found = self._tables.names_of(relation, tenant)
            names |= found
            if not found:
                elsewhere.add(relation)
        return frozenset(names), frozenset(elsewhere)


class _Relations:
    """The relations of a statement's notes, with the schemas that an execution gives them."""

    def __init__(self, notes: Notes, translated: dict[str | None, str], tenant: str) -> None:
        self._translated = translated
        self._tenant = tenant
        #: True if the search path tells where one of them lies.
        self.unqualified = False
        placed = self.placed
        self.reads = set(map(placed, notes.reads))
        self.writes = set(map(placed, notes.writes))
        self.deletes = set(map(placed, notes.deletes))
        self.updates = {(placed(relation), column) for relation, column in notes.updates}
        self.all = self.reads | self.writes

    def placed(self, relation: Relation) -> Relation:
        """Return a relation with its schema."""
        schema = self._translated.get(relation.schema, relation.schema)
        self.unqualified = self.unqualified or schema is None
        return Relation(schema or self._tenant, relation.name)


def watched_in(tables: Tables, statement: Statement) -> dict[str, frozenset[str]]:
    """Return the columns that a statement must tell of the rows that it changes, by table.

    None of a table of which the database may change further rows; and none if a flush executes
    the statement, because its objects tell more.
    """
    if statement.of_objects and flushing.get() is not None:
        return {}
    watched = tables.watched
    return {
        name: watched[name] for name in statement.writes - statement.cascades if name in watched
    }


def with_rows(
    statement: Statement,
    watched: Mapping[str, frozenset[str]],
    plan: Plan,
    context: ExecutionContext,
) -> Statement:
    """Return a statement with the rows that its plan tells in one execution."""
    rows: dict[str, tuple[Selection, ...]] = {}
    for name, columns in watched.items():
        if found := selections(plan, context, columns):
            rows[name] = found
    return statement._replace(rows=rows) if rows else statement


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
