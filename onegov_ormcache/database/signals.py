"""Tells which objects a flush changed, by blinker signals.

The signals are those that hosts of the seed know: sender is the schema, ``obj``
the changed object. ``on_table_change`` tells what is known only by table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter
from typing import Any

from blinker import Signal
from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Mapper, Session

#: The class of an object's state; thousands of them are asked in a flush.
CLASS = attrgetter('class_')


class Signals:
    """The signals of one session manager; all are sent in the flush, before the commit."""

    def __init__(self) -> None:
        #: An object was inserted: ``handler(schema, obj)``.
        self.on_insert = Signal()
        #: An object was updated: ``handler(schema, obj)``.
        self.on_update = Signal()
        #: An object was deleted: ``handler(schema, obj)``.
        self.on_delete = Signal()
        #: Tables were changed: ``handler(schema, tables)``, a frozenset of names.
        self.on_table_change = Signal()
        #: A schema was created: ``handler(schema)``. It may have existed before.
        self.on_schema_created = Signal()

    def send_flush(self, schema: str, session: Session) -> frozenset[str]:
        """Send a signal for each object of a flush that is about to end.

        :return: the tables that the objects of the flush account for.
        """
        classes = {cls for states in pending_in(session) for cls in set(map(CLASS, states))}
        for signal, kind in (
            (self.on_insert, 'new'),
            (self.on_update, 'dirty'),
            (self.on_delete, 'deleted'),
        ):
            for obj in list(getattr(session, kind)) if signal.receivers else ():
                if kind != 'dirty' or session.is_modified(obj):
                    signal.send(schema, obj=obj)
        return frozenset(table for cls in classes for table in tables_of(cls))


def tables_of(cls: type) -> Iterable[str]:
    """The names of all tables that a mapped class's objects are written to: those it
    is mapped to, and the secondary tables of its relationships."""
    yield from mapped_tables(cls)
    mapper: Mapper[Any] = inspect(cls)
    for relationship in mapper.relationships:
        if relationship.secondary is not None:
            yield getattr(relationship.secondary, 'fullname', str(relationship.secondary))


def pending_in(session: Session) -> tuple[Collection[InstanceState[Any]], ...]:
    """The session's modified, new and deleted objects that are not flushed: live.

    What ``Session._is_clean()`` looks at. ``session.dirty``, ``new`` and ``deleted`` would
    build collections each time. They stay the same until ``expunge_all()``.
    """
    return session.identity_map._modified, session._new, session._deleted


def mapped_tables(cls: type) -> Iterable[str]:
    """The names of the tables that a class is mapped to, with those it inherits."""
    mapper: Mapper[Any] = inspect(cls)
    return [getattr(table, 'fullname', str(table)) for table in mapper.tables]
