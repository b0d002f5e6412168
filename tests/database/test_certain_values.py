"""A value is certain only if the database stores it as it is, and finds no other one equal."""

from __future__ import annotations

import datetime
import enum
import uuid
from decimal import Decimal
from typing import Any

import pytest
from sqlalchemy import types
from sqlalchemy.dialects import postgresql

from onegov_ormcache.database.values import class_of, fits, is_certain
from tests.database.selecting import Lower, Odd


class Colour(enum.Enum):
    """Anything to choose from."""

    RED = 'red'


class Word(str):
    """A text of the application's own."""


NOON = datetime.datetime(2024, 5, 1, 12)


@pytest.mark.parametrize(
    ('column_type', 'certain', 'uncertain'),
    [
        (types.Integer(), [1, None], [True, 1.0, Decimal(1), '1']),
        (types.BigInteger(), [2**40], [1.5]),
        (types.String(), ['', 'a', ' a', 'ä', None], ['a ', b'a', 1, Word('a')]),
        (types.Text(), ['a'], ['a ']),
        (types.Boolean(), [True, None], [1, 'true']),
        (types.Date(), [NOON.date()], [NOON, '2024-05-01']),
        (types.DateTime(), [NOON], [NOON.replace(tzinfo=datetime.UTC), NOON.date()]),
        (types.Uuid(), [uuid.UUID(int=1)], [str(uuid.UUID(int=1))]),
        (types.LargeBinary(), [b'a'], ['a', bytearray(b'a')]),
        (types.Enum(Colour), [Colour.RED], ['RED', 'red']),
        (types.Enum('red', 'blue'), ['red'], [Colour.RED]),
        (postgresql.ENUM(Colour, name='colour'), [Colour.RED], ['RED']),
    ],
)
def test_values(column_type: Any, certain: list[Any], uncertain: list[Any]) -> None:
    """Values of exactly the class that the column gives back are certain, with few exceptions."""
    expected = class_of(column_type)
    assert expected is not None
    assert [is_certain(value, expected) for value in certain] == [True] * len(certain)
    assert [is_certain(value, expected) for value in uncertain] == [False] * len(uncertain)


@pytest.mark.parametrize(
    'column_type',
    [
        Lower(),
        Odd(),
        types.NullType(),
        types.Numeric(),
        types.Float(),
        types.JSON(),
        types.Interval(),
        types.CHAR(3),
        types.String(collation='NOCASE'),
        types.DateTime(timezone=True),
        types.Uuid(as_uuid=False),
        types.String().with_variant(types.CHAR(3), 'postgresql'),
        postgresql.CITEXT(),
        postgresql.TIMESTAMP(precision=0),
        postgresql.ARRAY(types.Integer),
        postgresql.JSONB(),
    ],
    ids=repr,
)
def test_types(column_type: Any) -> None:
    """No value is certain of a type that rounds, pads, folds, or is the application's own."""
    assert class_of(column_type) is None


@pytest.mark.parametrize(
    ('stored', 'expected', 'does_fit'),
    [
        ('int8', int, True),
        ('text', int, False),
        ('varchar', str, True),
        ('enum', Colour, True),
        ('uuid', str, False),
        ('date', datetime.date, True),
        ('date', datetime.datetime, False),
        ('timestamp', datetime.date, False),
        (None, int, False),
    ],
)
def test_types_of_the_database(stored: str | None, expected: type, does_fit: bool) -> None:
    """A column of the database fits values that it holds as they are, whatever the metadata says
    of it."""
    assert fits(stored, expected) is does_fit
