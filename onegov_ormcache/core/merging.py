"""Replaces ORM objects of a session that is gone by those of the present session.

A host may close its session within a request, and go on with another one. This module does not
know where the objects are kept.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Row, inspect
from sqlalchemy.orm import InstanceState, Session, object_session

from ..tiers.refusals import is_orm_object

#: The collections whose items are looked at. Others are computed again.
COLLECTIONS = (list, tuple, set, frozenset)


class GoneError(Exception):
    """An object is not in the database any more, or is in something that can't be made again."""


def of_session(session: Session, value: Any) -> Any:
    """Return a value with the session's own objects in the place of those of other sessions.

    The state of the present session counts; nothing is copied from the other one.

    :param value: an ORM object, or lists, tuples, sets, dicts and rows with such objects.
    :raises GoneError: if that is not possible.
    """
    if is_orm_object(value):
        return _object_of(session, value)
    if isinstance(value, Mapping):
        items = {of_session(session, k): of_session(session, v) for k, v in value.items()}
        return value if _same(items.items(), value.items()) else _made(dict, value, items)
    if isinstance(value, Row):
        if any(of_session(session, item) is not item for item in value):
            raise GoneError('a row can not be made again')
        return value
    if isinstance(value, COLLECTIONS):
        found = [of_session(session, item) for item in value]
        if all(new is old for new, old in zip(found, value, strict=True)):
            return value
        if hasattr(value, '_make') and type(value).__bases__ == (tuple,):
            return type(value)._make(found)
        return _made(type(value), value, found)
    return value


def _object_of(session: Session, obj: Any) -> Any:
    if object_session(obj) is session:
        return obj
    state: InstanceState[Any] = inspect(obj)
    found = session.get(state.mapper.class_, state.identity) if state.identity else None
    if found is None:
        raise GoneError(repr(obj))
    return found


def _same(new: Any, old: Any) -> bool:
    pairs = zip(new, old, strict=True)
    return all(n is o for (nk, nv), (ok, ov) in pairs for n, o in ((nk, ok), (nv, ov)))


def _made(kind: type, value: Any, items: Any) -> Any:
    if type(value) is not kind or kind not in (dict, *COLLECTIONS):
        raise GoneError(f'{type(value).__name__} can not be made again')
    return kind(items)
