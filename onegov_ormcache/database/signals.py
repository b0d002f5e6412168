"""Tells which objects a flush changed, by blinker signals.

The signals for objects have the names of those in onegov.core; as there, the sender is the
schema, and ``obj`` the changed object. ``on_table_change`` tells which tables a statement
changes, with or without objects. This module does not know who connects to the signals.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from functools import lru_cache
from operator import attrgetter
from typing import Any, TypeAlias

from blinker import Signal
from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Mapper, RelationshipProperty, Session

#: The objects of a flush, each with: whether it is deleted, and whether no row of it is written.
States: TypeAlias = Mapping[InstanceState[Any], tuple[bool, bool]]

#: Returns the class of an InstanceState; faster than a function, for thousands of objects in
#: one flush.
CLASS = attrgetter('class_')

#: The number of objects at which a flush is looked at before it is executed.
FEW = 10


class Signals:
    """The signals of one session manager.

    Those for objects are sent at the end of a flush, before the commit.
    """

    def __init__(self) -> None:
        #: An object was inserted: ``handler(schema, obj)``.
        self.on_insert = Signal()
        #: An object was updated: ``handler(schema, obj)``.
        self.on_update = Signal()
        #: An object was deleted: ``handler(schema, obj)``.
        self.on_delete = Signal()
        #: Tables are changed: ``handler(schema, tables)``, with a frozenset of names. Sent
        #: before the statement that changes them (on SQLite, after it); for changes that only
        #: the database can tell, when it was asked, before COMMIT at the latest.
        self.on_table_change = Signal()
        #: A schema is created: ``handler(schema)``. One of the same name may have existed
        #: before, and been dropped. Sent before others can see the schema: what they compute
        #: could not be stored if the schema got its new birth only afterwards.
        self.on_schema_created = Signal()

    def send_flush(self, schema: str, session: Session, states: States) -> frozenset[str]:
        """Send a signal for each object that a flush has inserted, updated or deleted.

        To be called in ``after_flush``, when the session still lists these objects.

        :param schema: the sender of the signals.
        :param states: the objects of the flush, orphans included, as SQLAlchemy's unit of work
            has them.
        :return: the tables that objects of the same classes are written to, without those of
            objects that a listener has expired or refreshed: they do not tell what was written.
        """
        orphans = [
            state
            for state, (is_delete, is_listed_only) in states.items()
            if is_delete and not is_listed_only and state not in session._deleted
        ]
        untold: set[Any] = {
            state.class_
            for state, (is_delete, is_listed_only) in states.items()
            if not (is_delete or is_listed_only) and is_untold(session, state)
        }
        classes = {cls for each in (*pending_in(session), states) for cls in set(map(CLASS, each))}
        for signal, kind in (
            (self.on_insert, 'new'),
            (self.on_update, 'dirty'),
            (self.on_delete, 'deleted'),
        ):
            for obj in list(getattr(session, kind)) if signal.receivers else ():
                if kind != 'dirty' or _is_modified(session, obj):
                    signal.send(schema, obj=obj)
        if self.on_delete.receivers:
            for orphan in orphans:
                self.on_delete.send(schema, obj=orphan.obj())
        told = frozenset(table for cls in classes for table in mapped_tables(cls))
        return told.difference(*(mapped_tables(cls) for cls in untold))


def is_untold(session: Session, state: InstanceState[Any]) -> bool:
    """Return whether an object of a flush does not tell what was written for it, because a
    listener has expired or refreshed it after its row was written.

    A listener that refreshes single attributes of an object that keeps other changes is not
    noticed.
    """
    if state in session._new or state in session._deleted:
        return False
    # a signal is sent for one with expired attributes, see _is_modified()
    is_listed = state in session.identity_map._modified
    return not (is_listed and (state.committed_state or state.expired_attributes))


def _is_modified(session: Session, obj: object) -> bool:
    """Return whether a flush may have written a value of an object that the session lists as
    dirty."""
    state: InstanceState[Any] = inspect(obj, raiseerr=True)
    # a value that was set to a SQL expression has expired in the flush, and has no history
    return session.is_modified(obj) or bool(state.expired_attributes)


def writes_one_table(session: Session) -> bool:
    """Return whether a flush will write few rows, all of one table, and change no relationship.

    False if that takes long to find out.
    """
    pending = pending_in(session)
    if sum(map(len, pending)) > FEW:
        return False
    states = [state for each in pending for state in each]
    classes: set[Any] = {state.class_ for state in states}
    return (
        len(classes) == 1
        and all(len(mapped_tables(cls)) == 1 for cls in classes)
        and not related_tables(states)
    )


def related_tables(states: Iterable[InstanceState[Any]]) -> set[str]:
    """Return the tables of both sides of each relationship that a flush has changed.

    A change of a relationship alone may write no row of one side, or of both.
    """
    found: set[str] = set()
    for state in states:
        cls: Any = state.class_
        relationships = relationships_of(cls)
        if relationships and relationships.keys() & state.committed_state.keys():
            found.update(mapped_tables(cls))
            for key in relationships.keys() & state.committed_state.keys():
                found |= relationships[key]
    return found


@lru_cache(10_000)
def relationships_of(cls: Any) -> Mapping[str, frozenset[str]]:
    """Return the relationships of a mapped class, each with the tables of its other side."""
    mapper: Mapper[Any] = inspect(cls)
    return {
        relationship.key: frozenset(mapped_tables(_target(relationship)))
        for relationship in mapper.relationships
        if not relationship.viewonly
    }


def _target(relationship: RelationshipProperty[Any]) -> Any:
    return relationship.entity.class_


def tables_of(cls: type) -> Iterable[str]:
    """Yield the names of all tables that objects of a mapped class are written to.

    These are the tables that it is mapped to, and the secondary tables of its relationships.
    """
    yield from mapped_tables(cls)
    mapper: Mapper[Any] = inspect(cls)
    for relationship in mapper.relationships:
        if relationship.secondary is not None:
            yield getattr(relationship.secondary, 'fullname', str(relationship.secondary))


def pending_in(session: Session) -> tuple[Collection[InstanceState[Any]], ...]:
    """Return the session's own collections of modified, new and deleted states.

    They change with the session, which replaces them only in ``expunge_all()``.
    ``Session._is_clean()`` looks at the same ones. ``session.dirty``, ``new`` and ``deleted``
    would build new collections at each access.
    """
    return session.identity_map._modified, session._new, session._deleted


@lru_cache(10_000)
def mapped_tables(cls: Any) -> tuple[str, ...]:
    """Return the names of the tables that a class is mapped to, inherited ones included."""
    mapper: Mapper[Any] = inspect(cls)
    return tuple(getattr(table, 'fullname', str(table)) for table in mapper.tables)
