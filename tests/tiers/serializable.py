"""Classes and values that the serializer takes, and `form`, which compares values exactly."""

from __future__ import annotations

import collections
import enum
import functools
import struct
from collections.abc import MutableSequence
from dataclasses import dataclass, field
from datetime import datetime, time, timedelta, tzinfo
from decimal import Decimal
from types import SimpleNamespace
from typing import Any, NamedTuple
from zoneinfo import ZoneInfo

from sqlalchemy import ForeignKey
from sqlalchemy.dialects import postgresql
from sqlalchemy.engine import IteratorResult, Row, RowMapping
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column, relationship

from onegov_ormcache.tiers.serializer import VERSION

#: The module by which stored values name the classes below.
MODULE = __name__

#: The class of bit strings, which SQLAlchemy 2.0 does not have: texts stand for them there.
BitString: Any = getattr(postgresql, 'BitString', str)


class Color(enum.Enum):
    RED = 'red'
    CRIMSON = 'red'  # noqa: PIE796 - an alias
    BLUE = (1, 2)


class Level(enum.IntEnum):
    LOW = 1
    HIGH = 2


class Mood(enum.StrEnum):
    GOOD = 'good'


class Right(enum.Flag):
    READ = 1
    WRITE = 2
    BOTH = 3


class Bits(enum.IntFlag):
    A = 1
    B = 2**70


class Wired(enum.Flag):
    ON = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        raise KeyboardInterrupt


class Ejecting(enum.IntFlag, boundary=enum.EJECT):
    A = 1


class Open(enum.Enum):
    KNOWN = 1

    @classmethod
    def _missing_(cls, value: object) -> Any:
        member: Any = object.__new__(cls)
        member._name_, member._value_ = 'UNKNOWN', value
        return member


class NoEnum:
    __members__ = {'RED': 1}


holder = SimpleNamespace(Color=Color)


class Outer:
    class Inner(enum.Enum):
        X = 1


class Point(NamedTuple):
    x: int
    y: object = None


class Empty(NamedTuple):
    pass


Loose = collections.namedtuple('Loose', 'a b')


class LooseChild(Loose):
    """Has a dict of its own, unlike a named tuple."""


@dataclass
class Node:
    name: str
    children: list[Node] = field(default_factory=list)
    size: int = field(init=False, default=0)

    @functools.cached_property
    def label(self) -> str:
        return f'<{self.name}>'


@dataclass
class Box:
    content: object


@dataclass(frozen=True)
class Money:
    amount: Decimal
    note: Any = None


@dataclass(frozen=True, slots=True)
class Slotted:
    a: object
    total: int = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, 'total', 41)


@dataclass(slots=True)
class Unset:
    a: int = field(init=False)


class Unregistered(NamedTuple):
    a: int


@dataclass
class UnregisteredData:
    a: int


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = 'users'
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    boss_id: Mapped[int | None] = mapped_column(ForeignKey('users.id'))
    staff: Mapped[list[User]] = relationship()


class DataUser(MappedAsDataclass, Base):
    __tablename__ = 'data_users'
    id: Mapped[int] = mapped_column(primary_key=True)


class Zone(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=1)

    def dst(self, moment: datetime | None) -> None:
        return None

    def tzname(self, moment: datetime | None) -> None:
        return None


TYPES = [Point, Empty, LooseChild, Node, Box, Money, Slotted, Unset]
ZURICH = ZoneInfo('Europe/Zurich')


def rows(*values: tuple[Any, ...], keys: tuple[str, ...] = ('id', 'name')) -> list[Row[Any]]:
    result: IteratorResult[Any] = IteratorResult(SimpleResultMetaData(keys), iter(values))
    return list(result.all())


def framed(body: bytes, version: int = VERSION, code: int = 0) -> bytes:
    """The bytes of a stored value with this body, its only part."""
    return parts((code, body), version=version)


def parts(*each: tuple[int, bytes], version: int = VERSION) -> bytes:
    """The bytes of a stored value with these parts: codes and bodies."""
    body = b''.join(struct.pack('>BI', code, len(part)) + part for code, part in each)
    return struct.pack('>BQ', version, len(body)) + body


def form(value: Any) -> object:
    """Something comparable that has each type and detail of the value, at every depth."""
    cls = type(value)
    if isinstance(value, enum.Enum):
        return cls, value.name, form(value.value)
    if cls is float:
        return cls, struct.pack('>d', value)
    if cls is Decimal:
        return cls, value.as_tuple()
    if cls in (datetime, time):
        return cls, value.replace(tzinfo=None).isoformat(), value.fold, zone_form(value.tzinfo)
    if isinstance(value, Row):
        return cls, value._fields, [form(part) for part in value]
    if isinstance(value, RowMapping):
        return cls, [(key, form(part)) for key, part in value.items()]
    if hasattr(cls, 'lower_inc'):  # the ranges of SQLAlchemy and psycopg
        return cls, form(value.lower), form(value.upper), value.bounds, value.isempty
    if isinstance(value, tuple | MutableSequence):
        return cls, [form(part) for part in value]
    if isinstance(value, set | frozenset):
        return cls, sorted((form(part) for part in value), key=repr)
    if isinstance(value, dict):
        return cls, [(form(key), form(part)) for key, part in value.items()]
    if cls in TYPES:
        return cls, [(name, form(getattr(value, name))) for name in cls.__dataclass_fields__]
    return cls, value


def zone_form(zone: tzinfo | None) -> object:
    if isinstance(zone, ZoneInfo):
        return ZoneInfo, zone.key
    return type(zone), zone and (zone.utcoffset(None), zone.tzname(None))
