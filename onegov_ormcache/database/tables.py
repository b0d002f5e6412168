"""The tables of an application's metadata, and the names that the database has for them.

The package names a table as the metadata does. The database truncates long names, and always
tells the schema. This module does not know the database.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from sqlalchemy import ForeignKeyConstraint, MetaData, Table
from sqlalchemy.exc import NoReferenceError

from ..errors import ConfigurationError
from .cascades import affected
from .catalog import Definition, Reference
from .notes import ANY_COLUMN, Relation, relation_of


class Tables:
    """The tables of several MetaData, also those that are added later.

    Made by an observer, used by all threads.

    :param metadatas: returns the MetaData.
    :param placeholder: the schema that the metadata gives to tables of tenants; None: it gives
        them none. Statements are executed with another one in its place.
    """

    def __init__(
        self, metadatas: Callable[[], Sequence[MetaData]], placeholder: str | None = None
    ) -> None:
        self.metadatas = metadatas
        self.placeholder = placeholder
        #: The columns, by table, of which statements tell the values in the rows that they
        #: change; see :meth:`.Observer.watch_rows`.
        self.watched: Mapping[str, frozenset[str]] = {}
        self._names: dict[Relation, frozenset[str]] = {}
        self._folded: dict[str, frozenset[str]] = {}
        self._shared_schemas: list[str] = []
        self._size = 0

    @property
    def shared_schemas(self) -> list[str]:
        """The schemas of tables that tenants share, sorted: those that the metadata names."""
        self._known()
        return self._shared_schemas

    @property
    def names(self) -> frozenset[str]:
        """The names of all tables, with the schema of those that have one of their own."""
        return frozenset(name for metadata in self.metadatas() for name in metadata.tables)

    def has(self, name: str) -> bool:
        """Return whether there is a table of this name."""
        return any(name in metadata.tables for metadata in self.metadatas())

    def watch(self, columns: Mapping[str, frozenset[str]]) -> None:
        """Watch further columns; see :meth:`.Observer.watch_rows`."""
        watched = dict(self.watched)
        for table, names in columns.items():
            watched[table] = watched.get(table, frozenset()) | names
        self.watched = watched  # replaced, because other threads read it

    def relations(self) -> list[Relation]:
        """Return all tables as the database names them; those of tenants without schema."""
        return [self._relation(table) for table in self._all()]

    def _relation(self, table: Table) -> Relation:
        """Return the relation that a table stands for; without schema if it is the tenants'."""
        found = relation_of(table)
        return found._replace(schema=None) if found.schema == self.placeholder else found

    @property
    def shared(self) -> frozenset[str]:
        """The names of the tables that tenants share."""
        return frozenset(t.fullname for t in self._all() if self._relation(t).schema is not None)

    def names_of(self, relation: Relation, tenant: str) -> frozenset[str]:
        """Return the names that the metadata has for a relation of the database.

        :param relation: with its schema.
        :param tenant: the schema whose tables the metadata names without schema.
        :return: none if the relation lies neither in the tenant nor in a shared schema. A
            relation of the tenant that the metadata does not have is named as it is.
        """
        known = self._known()
        names = known.get(relation, frozenset())
        if relation.schema == tenant:
            own = Relation(None, relation.name)
            return names | known.get(own, frozenset({relation.name}))
        if names or relation.schema not in self.shared_schemas:
            return names
        return frozenset({f'{relation.schema}.{relation.name}'})

    def folded(self, name: str) -> frozenset[str]:
        """Return the names that the metadata has for a table whose name SQLite gives, which
        compares names without case (of ASCII letters); the name itself if it has none."""
        found = self._known().get(Relation(None, name)) or self._folded.get(name.lower())
        return found or frozenset({name.lower()})

    def reached_from(self, name: str) -> frozenset[str]:
        """Return the tables that change with a table, by the metadata's foreign keys."""
        definitions: dict[Relation, Definition] = {}
        for table in self._all():
            relation = self._relation(table)
            definitions[relation] = Definition(relation, 'r')
        for table in self._all():
            for constraint in table.foreign_key_constraints:
                referred, reference = self._reference(constraint)
                if referred in definitions:
                    known = definitions[referred]
                    definitions[referred] = known._replace(
                        references=(*known.references, reference)
                    )
        relations = {self._relation(t) for t in self._all() if t.fullname == name}
        updates = {(relation, ANY_COLUMN) for relation in relations}
        changed = relations | (affected(definitions, relations, relations, updates) or set())
        return frozenset(n for each in changed for n in self._known().get(each, ()))

    def _known(self) -> dict[Relation, frozenset[str]]:
        """Return the metadata's names by relation; found anew if tables were added."""
        size = sum(len(metadata.tables) for metadata in self.metadatas())
        if size != self._size:
            names: dict[Relation, set[str]] = {}
            for table in self._all():
                names.setdefault(self._relation(table), set()).add(table.fullname)
            self._names = {relation: frozenset(found) for relation, found in names.items()}
            self._folded = {each.name.lower(): found for each, found in self._names.items()}
            self._shared_schemas = sorted({each.schema for each in names if each.schema})
            self._size = size
        return self._names

    def _all(self) -> Iterator[Table]:
        for metadata in self.metadatas():
            yield from list(metadata.tables.values())

    def _reference(
        self, constraint: ForeignKeyConstraint
    ) -> tuple[Relation | None, Reference]:
        """Return the relation that a foreign key refers to, and the key as seen from there."""
        actions = {'CASCADE': 'c', 'SET': 'n'}
        element = constraint.elements[0]
        try:
            referred = self._relation(element.column.table)
        except NoReferenceError:
            referred = None  # in another metadata, or in the database only
        return referred, Reference(
            self._relation(constraint.table),
            frozenset(),
            frozenset(column.name for column in constraint.columns),
            actions.get((constraint.ondelete or '').upper().partition(' ')[0], ''),
            actions.get((constraint.onupdate or '').upper().partition(' ')[0], ''),
        )


def metadatas_of(base: Any) -> Sequence[MetaData]:
    """Return the MetaData of ``base``, as a list.

    :param base: a declarative base or MetaData, or an iterable of them.
    :raises ConfigurationError: if it is anything else, or empty.
    """
    bases = list(base) if isinstance(base, Iterable) else [base]
    metadatas = [b if isinstance(b, MetaData) else getattr(b, 'metadata', None) for b in bases]
    if not metadatas or not all(isinstance(metadata, MetaData) for metadata in metadatas):
        raise ConfigurationError(
            f'base is {base!r}; expected a declarative base, or several: give the '
            'setting base'
        )
    return [metadata for metadata in metadatas if metadata is not None]
