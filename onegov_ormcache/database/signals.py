"""Tells which objects a flush changed, by blinker signals, as they were before and are now.

The signals are those that hosts of the seed know: sender is the schema, ``obj``
the changed object. ``on_table_change`` tells what is known only by table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import attrgetter
from types import FunctionType, MethodType
from typing import Any

from blinker import Signal
from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Mapper, Session
from sqlalchemy.orm.base import NO_VALUE

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


class UnknownState(BaseException):
    """An attribute's value at that moment is not known without a query."""


class ObjectState:
    """An object as it was before a flush, or is after it, for a policy to look at.

    It looks like the object (``isinstance`` holds, methods, properties and hybrids
    work), but never loads: an attribute that is not known raises
    :class:`UnknownState`.
    """

    def __init__(self, obj: object, before: bool) -> None:
        state: InstanceState[Any] = inspect(obj)
        object.__setattr__(self, '_state', state)
        object.__setattr__(self, '_before', before)

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        return self._state.class_  # type: ignore[no-any-return]

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f'a policy must not change the object: {name}')

    def __eq__(self, other: object) -> bool:
        return other is self or other is self._state.obj()

    def __hash__(self) -> int:
        return hash(self._state.obj())

    def __getattr__(self, name: str) -> Any:
        state: InstanceState[Any] = object.__getattribute__(self, '_state')
        if name in state.mapper.attrs:
            return self._mapped(state, name)
        attribute = getattr(state.class_, name, None)
        for cls in state.class_.__mro__:
            if name in vars(cls):
                attribute = vars(cls)[name]
                break
        if isinstance(attribute, FunctionType):
            return MethodType(attribute, self)
        getter = getattr(attribute, 'fget', None)
        if getter is not None:
            return getter(self)
        return getattr(state.obj(), name)

    def _mapped(self, state: InstanceState[Any], name: str) -> Any:
        if self._before and name in state.committed_state:
            value = state.committed_state[name]
            if value is NO_VALUE:
                raise UnknownState(name)
            return value
        if name not in state.dict:
            raise UnknownState(name)
        return state.dict[name]
