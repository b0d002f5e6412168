"""Tells whether a value lies in the database exactly as a program has given it.

Rows are told by values of Python (see :mod:`.selections`). That is right only if the database
stores each value unchanged, and finds equal what Python finds equal. Databases round numbers, cut
blanks off, ignore case where a collation says so, and a type of the application's own may turn a
value into any other. So this module knows the types and values of which it is certain, and no
others. It does not know the database's own definition of a column.
"""

from __future__ import annotations

import datetime
import enum
import uuid
from typing import Any

from sqlalchemy import types
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import TypeEngine

#: The types whose values are certain, each with the class of its values. Types that derive from
#: them may do anything.
CLASSES: dict[type[TypeEngine[Any]], type] = {
    **dict.fromkeys(
        (
            types.BigInteger, types.BIGINT, types.Integer, types.INTEGER, types.SmallInteger,
            types.SMALLINT,
        ),
        int,
    ),
    **dict.fromkeys(
        (types.String, types.Text, types.TEXT, types.Unicode, types.UnicodeText, types.VARCHAR),
        str,
    ),
    **dict.fromkeys((types.Boolean, types.BOOLEAN), bool),
    **dict.fromkeys((types.Date, types.DATE), datetime.date),
    **dict.fromkeys((types.DateTime, types.TIMESTAMP, postgresql.TIMESTAMP), datetime.datetime),
    **dict.fromkeys((types.LargeBinary, postgresql.BYTEA), bytes),
    **dict.fromkeys((types.Uuid, types.UUID), uuid.UUID),
    **dict.fromkeys((types.Enum, postgresql.ENUM), str),
}  # fmt: skip

#: PostgreSQL's types that hold values as they are given, by the class of the values.
STORED: dict[type, frozenset[str]] = {
    int: frozenset({'int2', 'int4', 'int8'}),
    str: frozenset({'enum', 'text', 'varchar'}),
    bool: frozenset({'bool'}),
    datetime.date: frozenset({'date'}),
    datetime.datetime: frozenset({'timestamp'}),
    bytes: frozenset({'bytea'}),
    uuid.UUID: frozenset({'uuid'}),
}


def class_of(column_type: TypeEngine[Any]) -> type | None:
    """Return the class of the values of a column that are certain; None if none are.

    :param column_type: the type of a column, or of a parameter.
    """
    found = CLASSES.get(type(column_type))
    kind: Any = column_type
    # an attribute of the type itself is the application's own
    if found is None or kind._variant_mapping or 'comparator_factory' in vars(kind):
        return None
    if found is str:
        if isinstance(kind, types.Enum):
            return kind.enum_class or str
        return None if kind.collation else str
    if found is datetime.datetime:
        is_exact = not kind.timezone and getattr(kind, 'precision', None) is None
        return found if is_exact else None
    if found is uuid.UUID:
        return found if kind.as_uuid else None
    return found


def is_certain(value: object, expected: type) -> bool:
    """Return whether a value is stored as it is, and found by equal values alone.

    :param expected: what :func:`class_of` has returned for the column's type. None, which is
        NULL, is certain in any case.
    """
    if type(value) is not expected:
        return value is None
    if isinstance(value, str):
        return not value.endswith(' ')  # PostgreSQL cuts blanks off that exceed the length
    return not isinstance(value, datetime.datetime) or value.tzinfo is None


def fits(stored: str | None, expected: type) -> bool:
    """Return whether a column of PostgreSQL holds certain values as they are.

    The metadata may say something else of the column.

    :param stored: see :attr:`.Definition.stored`; None for a column that is not in it.
    """
    return stored in STORED[str if issubclass(expected, enum.Enum) else expected]
