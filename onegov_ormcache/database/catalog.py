"""What a process knows of PostgreSQL's catalog: the definitions of tables and functions.

A statement that SQLAlchemy has compiled names its tables. What else it touches depends on how
these are defined: on triggers, rules, views, partitions, foreign keys, row level security and
functions. A :class:`Catalog` has the definitions that the statements of one schema need. It is
read from the database when it is first needed, when the scope's token says that definitions have
changed, and after :data:`LIFETIME`. This module does not know statements.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from functools import cache
from importlib.resources import files
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from cachetools import LRUCache
from frozendict import frozendict
from sqlalchemy import Connection, Row, TextClause, text
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.engine import Compiled

from ..forks import OwnLock
from .names import INTERNAL, NOTIFY_FUNCTION
from .notes import Relation
from .protocols import Scope, Statement
from .questions import question
from .selections import Plan

#: Seconds after which definitions are read again, because others may have changed them.
LIFETIME = 5.0

#: The number of schemas whose definitions are remembered, and of relations by oid.
REMEMBERED_SCHEMAS = 1_000
REMEMBERED_RELATIONS = 100_000

#: What SQLAlchemy renders as functions, but are keywords of PostgreSQL.
KEYWORDS = frozenset(
    (
        'any', 'all', 'array', 'cast', 'coalesce', 'current_catalog', 'current_date',
        'current_role', 'current_schema', 'current_time', 'current_timestamp', 'current_user',
        'exists', 'extract', 'greatest', 'grouping', 'least', 'localtime', 'localtimestamp',
        'nullif', 'row', 'session_user', 'some', 'user',
    )
)  # fmt: skip

#: PostgreSQL's own functions that read tables, or execute a text that may.
READING = re.compile(
    r'ts_rewrite|ts_stat|lo_\w+|loread|lowrite|(cursor|database|query|schema|table)_to_xml\w*|pg_\w+|nextval|'
    r'setval|currval|set_config|has_\w+_privilege|row_security_active|to_reg\w+'
)

#: PostgreSQL's own functions that are not declared volatile, but depend on the connection.
OF_CONNECTION = frozenset(('current_setting', 'current_user', 'session_user'))

#: Selects functions by name, with their volatility, from the schemas of a search path and from
#: PostgreSQL's own.
FUNCTIONS = """
SELECT proname, bool_or(provolatile = 'v') AS is_volatile,
    bool_or(nspname <> 'pg_catalog') AS is_own
FROM pg_proc p JOIN pg_namespace n ON n.oid = pronamespace
WHERE proname = ANY(:functions) AND nspname = ANY(:schemas)
GROUP BY proname
"""

#: Selects a reason why no statement of the database can be understood: an operator, a cast or a
#: domain that calls a function which is neither PostgreSQL's own nor written in C.
DEVIATES = """
WITH own AS (
    SELECT p.oid FROM pg_proc p JOIN pg_language l ON l.oid = prolang
    WHERE p.oid >= 16384 AND lanname NOT IN ('c', 'internal')
)
SELECT coalesce(
    (SELECT 'the operator ' || oprname FROM pg_operator WHERE oprcode IN (SELECT oid FROM own)
     LIMIT 1),
    (SELECT 'a cast' FROM pg_cast WHERE castfunc IN (SELECT oid FROM own) LIMIT 1),
    (SELECT 'the domain constraint ' || conname
     FROM pg_constraint k JOIN pg_depend d
        ON d.classid = 'pg_constraint'::regclass AND d.objid = k.oid
     WHERE conrelid = 0 AND contypid <> 0 AND refclassid = 'pg_proc'::regclass LIMIT 1)
)
"""

#: Selects the oids of tables and indexes, each with that of its table.
OIDS = """
SELECT c.oid, coalesce(indrelid, c.oid) AS table_oid
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
LEFT JOIN pg_index ON indexrelid = c.oid
WHERE nspname = ANY(:path) AND relkind IN ('r', 'i', 'm')
"""

#: The begin of all queries of this module.
MARK = '/* orm_cache: definitions */'


class Reference(NamedTuple):
    """A foreign key that acts on changes, as seen from the table that it refers to."""

    relation: Relation
    #: The columns, of the referred table, that it refers to.
    referred: frozenset[str]
    #: The columns of the foreign key itself.
    columns: frozenset[str]
    #: PostgreSQL's letters for the action: ``c`` cascades, ``n`` and ``d`` set columns.
    on_delete: str
    on_update: str


class Definition(NamedTuple):
    """What the catalog says about one relation."""

    relation: Relation
    #: PostgreSQL's letter for the kind: ``r`` is a table, ``v`` a view; '' if it is not known.
    kind: str
    is_temporary: bool = False
    #: The relations that show its rows, too.
    shown_by: frozenset[Relation] = frozenset()
    references: tuple[Reference, ...] = ()
    #: Why reading it may read other relations; None if it can't.
    is_more: str | None = None
    #: Why changing it may change more than the rest tells; None if it can't.
    acts: str | None = None
    #: True if it has a trigger that may run in COMMIT.
    deferred: bool = False
    #: PostgreSQL's names for the types of columns that hold values as they are given, by column;
    #: ``enum`` for any enumeration.
    stored: Mapping[str, str] = frozendict()


class Catalog:
    """The definitions that statements of one schema need; made by :class:`Catalogs`.

    :param path: the schemas in which unqualified names are looked up.
    :param token: see :meth:`~.protocols.Scope.definitions`.
    """

    def __init__(self, path: tuple[str, ...], token: Hashable) -> None:
        self.path = path
        self.token = token
        self.until = time.monotonic() + LIFETIME
        self.relations: dict[Relation, Definition] = {}
        #: Why no statement can be understood; None if statements can.
        self.deviates: str | None = None
        #: What :meth:`explain` says about the functions that were asked for.
        self.functions: dict[str, tuple[str | None, str | None]] = {}
        #: The oids of all tables and indexes of the path, each with that of its table; None
        #: until they are needed.
        self.oids: dict[int, int] | None = None
        #: What compiled statements touch, by statement and translated schemas.
        self.statements: WeakKeyDictionary[Compiled, dict[Any, Statement]] = WeakKeyDictionary()
        #: What tells their rows, by statement and translated schemas.
        self.plans: WeakKeyDictionary[Compiled, dict[Any, Plan | None]] = WeakKeyDictionary()

    @property
    def deferred(self) -> bool:
        """True if a trigger of a known table may run in COMMIT."""
        return any(definition.deferred for definition in self.relations.values())

    def is_valid(self, token: Hashable) -> bool:
        """Return whether the definitions may still be used."""
        return self.token == token and time.monotonic() < self.until

    def explain(self, functions: Collection[str]) -> tuple[str | None, str | None]:
        """Return why it is not known what these functions read, and why their results may
        differ each time although nothing has changed; None where there is no reason."""
        unclear = unrepeatable = None
        for name in functions:
            found = self.functions[name]
            unclear, unrepeatable = unclear or found[0], unrepeatable or found[1]
        return unclear, unrepeatable


class Catalogs:
    """The catalogs of one database; used by all threads.

    :param relations: returns the tables of the metadata; those of tenants have no schema.
    :param shared: the schemas of tables that tenants share.
    :param extensions: the schema for extensions.
    """

    def __init__(
        self,
        relations: Callable[[], Iterable[Relation]],
        shared: Collection[str],
        extensions: str,
    ) -> None:
        self._relations = relations
        self._shared = tuple(shared)
        self._extensions = extensions
        self._lock = OwnLock()
        self._catalogs: LRUCache[str, Catalog] = LRUCache(REMEMBERED_SCHEMAS)
        # the one that was found last: each statement asks
        self._last: Catalog | None = None
        self._of_transactions: WeakKeyDictionary[Connection, Catalog] = WeakKeyDictionary()
        # also has relations that were dropped, whose locks are held until the end of the
        # transaction that has dropped them
        self._by_oid: LRUCache[int, tuple[Hashable, float, Definition]] = LRUCache(
            REMEMBERED_RELATIONS
        )
        self._functions: set[str] = set()

    def catalog(self, connection: Connection, scope: Scope) -> Catalog:
        """Return the catalog of a scope's schema; read it by this connection if it is not known.

        It is not remembered if the transaction may have changed definitions itself, because it
        may be rolled back.
        """
        schema, token = scope.schema, scope.definitions()
        last = self._last
        if last is not None and last.path[0] == schema and last.is_valid(token):
            return last
        with self._lock.present:
            found = self._last = self._catalogs.get(schema)
            if found is None or not found.is_valid(token):
                found = self._of_transactions.get(connection)
        if found is None or not found.is_valid(token) or found.path[0] != schema:
            found = self._read(connection, schema, token)
            with self._lock.present:
                if scope.was_unclear:
                    self._of_transactions[connection] = found
                else:
                    self._catalogs[schema] = found
        return found

    def know_relations(
        self, connection: Connection, catalog: Catalog, wanted: Collection[Relation]
    ) -> None:
        """Read the missing definitions of these relations and of what their keys reach."""
        known, seen, ahead = catalog.relations, set[Relation](), set(wanted)
        while ahead:
            if missing := ahead - known.keys():
                unknown = {each: Definition(each, '', is_more='is not known') for each in missing}
                read = self._definitions(connection, missing, ()).values()
                known.update(unknown | {each.relation: each for each in read})
            seen |= ahead
            ahead = {r.relation for each in ahead for r in known[each].references} - seen

    def know_functions(self, connection: Connection, catalog: Catalog, names: set[str]) -> None:
        """Read what the catalog says about these functions, if the process does not know."""
        missing = names - catalog.functions.keys()
        if missing:
            with self._lock.present:
                self._functions |= missing
            self._read_functions(connection, catalog, missing)

    def by_oids(
        self,
        connection: Connection,
        oids: Collection[int],
        token: Hashable,
        schema: str | None = None,
    ) -> dict[int, Definition | None]:
        """Return the definitions of relations; None for those that neither the process nor the
        database knows.

        :param token: with another one, definitions are read again.
        :param schema: what lies elsewhere than in this schema and those of shared tables is not
            remembered, because the token says nothing about it; None: all is.
        """
        with self._lock.present:
            known = {oid: self._by_oid.get(oid) for oid in oids}
        now = time.monotonic()
        missing = [
            oid
            for oid, found in known.items()
            if found is None or found[0] != token or found[1] < now
        ]
        definitions = {oid: found[2] if found else None for oid, found in known.items()}
        if missing:
            read = self.read(connection, missing)
            known_places = (schema, *self._shared)
            own = {oid: d for oid, d in read.items() if d.relation.schema in known_places}
            self._remember(read if schema is None else own, token)
            definitions |= read
        return definitions

    def _remember(self, definitions: dict[int, Definition], token: Hashable) -> None:
        until = time.monotonic() + LIFETIME
        with self._lock.present:
            self._by_oid.update({oid: (token, until, d) for oid, d in definitions.items()})

    def read(self, connection: Connection, oids: Collection[int]) -> dict[int, Definition]:
        """Return the present definitions of relations, and remember nothing."""
        return self._definitions(connection, (), oids) if oids else {}

    def read_by_driver(self, connection: Any, oids: Collection[int]) -> dict[int, Definition]:
        """Return the present definitions of relations, as a connection of psycopg sees them."""
        from psycopg.rows import namedtuple_row

        dialect = PGDialect_psycopg()  # type: ignore[no-untyped-call]
        query = str(text(definitions_query()).compile(dialect=dialect))
        cursor = connection.cursor(row_factory=namedtuple_row)
        rows = cursor.execute(query, _parameters((), oids))
        return {row.oid: _definition(row) for row in rows}

    def oids(self, connection: Connection, catalog: Catalog) -> dict[int, int]:
        """Return the oids of all tables and indexes of the catalog's schemas, each with that of
        its table."""
        if catalog.oids is None:
            found = _execute(connection, OIDS, {'path': list(catalog.path)})
            catalog.oids = {row.oid: row.table_oid for row in found}
        return catalog.oids

    def _read(self, connection: Connection, schema: str, token: Hashable) -> Catalog:
        catalog = Catalog((schema, *self._shared, self._extensions), token)
        wanted = {
            Relation(table.schema or schema, table.name) for table in self._relations()
        }
        definitions = self._definitions(connection, wanted, ())
        catalog.relations = {each.relation: each for each in definitions.values()}
        self._remember(definitions, token)
        catalog.deviates = _execute(connection, DEVIATES, {})[0][0]
        with self._lock.present:
            functions = set(self._functions)
        if functions:
            self._read_functions(connection, catalog, functions)
        return catalog

    def _definitions(
        self, connection: Connection, wanted: Collection[Relation], oids: Collection[int]
    ) -> dict[int, Definition]:
        rows = _execute(connection, definitions_query(), _parameters(wanted, oids))
        return {row.oid: _definition(row) for row in rows}

    def _read_functions(
        self, connection: Connection, catalog: Catalog, names: Iterable[str]
    ) -> None:
        plain = [name for name in names if '.' not in name and name not in KEYWORDS]
        schemas = ['pg_catalog', *catalog.path]
        rows = _execute(connection, FUNCTIONS, {'functions': plain, 'schemas': schemas})
        found = {row.proname: (row.is_volatile, row.is_own) for row in rows}
        for name in names:
            catalog.functions[name] = _explained(name, found.get(name))


def _parameters(wanted: Collection[Relation], oids: Collection[int]) -> dict[str, Any]:
    """Return the parameters of :func:`definitions_query`."""
    return {
        'schemas': [relation.schema for relation in wanted],
        'names': [relation.name for relation in wanted],
        'oids': list(oids),
        'notify': NOTIFY_FUNCTION,
    }


def _explained(name: str, found: tuple[bool, bool] | None) -> tuple[str | None, str | None]:
    if name in KEYWORDS and name not in OF_CONNECTION:
        return None, None
    if name in OF_CONNECTION:
        return None, f'it called {name}(), whose result depends on the connection'
    is_volatile, is_own = found or (False, True)
    unclear = None
    if is_own or READING.fullmatch(name):
        unclear = f'calls {name}(), which may touch any table'
    return unclear, f'it called {name}(), which is volatile' if is_volatile else None


def _definition(row: Any) -> Definition:
    references = tuple(
        Reference(
            Relation(each['schema'], each['table']),
            frozenset(each['referred']),
            frozenset(each['columns']),
            each['on_delete'],
            each['on_update'],
        )
        for each in row.references or ()
    )
    return Definition(
        Relation(row.nspname, row.relname),
        row.relkind,
        row.is_temporary,
        frozenset(Relation(*pair) for pair in row.shown_by or ()),
        references,
        row.is_more,
        row.acts,
        row.deferred,
        frozendict(row.stored or ()),
    )


@cache
def definitions_query() -> str:
    """Return the query of ``sql/definitions.sql``."""
    query = (files(__package__) / 'sql' / 'definitions.sql').read_text(encoding='utf-8')
    # SQLAlchemy takes a colon in a comment for a parameter
    return '\n'.join(line for line in query.splitlines() if not line.startswith('--'))


@cache
def marked(query: str) -> TextClause:
    """Return a query of the catalog, marked so that it is known in the server's log."""
    return text(f'{MARK} {query}')


def _execute(
    connection: Connection, query: str, parameters: dict[str, Any]
) -> list[Row[Any]]:
    with question(connection, MARK):
        return list(connection.execute(marked(query), parameters, execution_options=INTERNAL))
