"""How the values of a column are compared: as texts that are equal wherever the database's are.

The reverse need not hold: two values with one text only share a tag. So texts are coarser than
the database's comparison where that is not exact, as for numbers that it rounds. A value without a
text is one of which nobody knows here what the database takes it for. This module does not know
rows.
"""

from __future__ import annotations

import datetime
import math
import uuid
from collections.abc import Callable
from decimal import Decimal
from enum import Enum
from typing import Any

from sqlalchemy import types
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine.default import DefaultDialect
from sqlalchemy.types import TypeDecorator, TypeEngine

from ..errors import PolicyError

#: Returns the text of a value; None if it has none.
Text = Callable[[Any], str | None]

#: Stands for a value that nobody knows. It has no text.
UNKNOWN = object()

#: The text of None, which is no text of any other value.
NULL = '\1'

#: The largest number of which a neighbour is a number of its own in each type of the database.
MAX_NUMBER = 2**22

#: The modules of the types that are known here. Types of other databases may round.
KNOWN_MODULES = 'sqlalchemy.sql.', 'sqlalchemy.dialects.postgresql'

#: The whole numbers that a column of integers may have.
SMALLEST, GREATEST = -(2**63), 2**63 - 1

#: By which a type without a database to ask turns values into those of its implementation.
DIALECT = DefaultDialect()

#: Those for which a decorator may choose an implementation.
DIALECTS = postgresql.dialect(), sqlite.dialect()  # type: ignore[no-untyped-call]


class Kind:
    """How the values of a column are compared.

    :param name: part of tags, so that values that are compared in another way have other tags.
    :param text: returns the text of a value that is not None.
    :param parse: returns the value that PostgreSQL writes as a text.
    """

    def __init__(self, name: str, text: Text, parse: Callable[[str], Any] | None = None) -> None:
        self.name = name
        self._text = text
        self._parse = parse

    def __repr__(self) -> str:
        return f'<{type(self).__name__} {self.name}>'

    def text(self, value: Any) -> str | None:
        """Return the text of a value that is looked for; None if it has none."""
        if value is UNKNOWN:
            return None
        return NULL if value is None else self._text(value)

    def texts_written(self, value: Any) -> tuple[str, ...] | None:
        """Return the texts that a value may have after the database has stored it; None if that is
        not known."""
        text = self.text(value)
        return None if text is None else (text,)

    def parse(self, text: str | None) -> Any:
        """Return a value that PostgreSQL has written as a text; one without a text if that can't
        be told."""
        if text is None:
            return None
        try:
            return UNKNOWN if self._parse is None else self._parse(text)
        except ValueError:
            return UNKNOWN


class RoundedKind(Kind):
    """The kind of numbers that the database may round: a text tells only the whole number.

    A stored number may differ from the given one, so it is written with its neighbours.
    """

    def texts_written(self, value: Any) -> tuple[str, ...] | None:
        text = self.text(value)
        if text is None or text == NULL:
            return None if text is None else (text,)
        number = int(text)
        if abs(number) > MAX_NUMBER:
            return None
        return tuple(str(number + step) for step in (-1, 0, 1))


class InstantKind(Kind):
    """The kind of moments with a time zone.

    PostgreSQL compares the moments, and SQLite what the clocks show, because it drops the zones.
    Both are the same for UTC; a value is written with both.
    """

    def text(self, value: Any) -> str | None:
        text = super().text(value)
        is_utc = text is None or text == NULL or not value.utcoffset()
        return text if is_utc else None

    def texts_written(self, value: Any) -> tuple[str, ...] | None:
        text = super().text(value)
        if text is None or text == NULL:
            return None if text is None else (text,)
        return text, value.replace(tzinfo=datetime.UTC).isoformat()


class DecoratedKind(Kind):
    """The kind of a ``TypeDecorator``: that of the values which it gives the database.

    A value has a text only if what is loaded for it is given to the database as the same value.

    :param decorator: the type.
    :param inner: the kind of the type that it decorates.
    """

    def __init__(self, decorator: TypeDecorator[Any], inner: Kind) -> None:
        self.name = inner.name
        self._decorator = decorator
        self._inner = inner

    def text(self, value: Any) -> str | None:
        bound = self._bound(value)
        text = self._inner.text(bound)
        # what was loaded must tell the row in which it was found; a hash, for example, does not
        is_stable = self._inner.text(self._bound(self._loaded(bound))) == text
        return text if is_stable else None

    def texts_written(self, value: Any) -> tuple[str, ...] | None:
        return self._inner.texts_written(self._bound(value))

    def parse(self, text: str | None) -> Any:
        return UNKNOWN  # what the decorator makes of it is not known

    def _bound(self, value: Any) -> Any:
        return self._processed('process_bind_param', value)

    def _loaded(self, value: Any) -> Any:
        return self._processed('process_result_value', value)

    def _processed(self, method: str, value: Any) -> Any:
        is_own = getattr(type(self._decorator), method) is not getattr(TypeDecorator, method)
        if value is UNKNOWN or not is_own:
            return value
        try:
            return getattr(self._decorator, method)(value, DIALECT)
        except Exception:
            return UNKNOWN  # the statement will fail by the same error


def kind_of(type_: TypeEngine[Any], where: str) -> Kind:
    """Return the kind of a column's type.

    :param where: the property and the column, for the message.
    :raises PolicyError: if nobody but the database knows which values of this type are equal.
    """
    variants = [kind_of(variant, where) for variant in type_._variant_mapping.values()]
    collation = getattr(type_, 'collation', None)
    kind = None if collation else _kind_of(type_, where)
    # a type may be another one on some databases
    if kind is not None and any(each.name != kind.name for each in variants):
        kind = None
    if kind is None:
        reason = f' with the collation {collation!r}' if collation else ''
        if variants:
            reason = ' with variants that are compared in another way'
        raise PolicyError(
            f'{where} has the type {type_!r}{reason}; only the database knows which of its values '
            'are equal, so rows can not be told apart by it: name the mapped class as the policy, '
            'or another column'
        )
    return kind


def _decorated_kind(type_: TypeDecorator[Any], where: str) -> Kind | None:
    for method in 'bind_expression', 'column_expression', 'bind_processor', 'result_processor':
        if getattr(type(type_), method) is not getattr(TypeDecorator, method):
            return None  # it makes another value of what it is given, and not in Python alone
    for dialect in DIALECTS:
        # what it is for one database may round, or find more values equal
        kind_of(type_.load_dialect_impl(dialect), where)
    return DecoratedKind(type_, kind_of(type_.impl_instance, where))


def _kind_of(type_: Any, where: str) -> Kind | None:
    is_known = type(type_).__module__.startswith(KNOWN_MODULES)
    if isinstance(type_, TypeDecorator) and not is_known:
        return _decorated_kind(type_, where)
    # a format of SQLite can leave a part of the value out
    if not is_known or '_storage_format' in vars(type_):
        return None
    precision = getattr(type_, 'precision', None)
    if isinstance(type_, types.Enum):  # before String, which it is as well
        return Kind('enum', _enum_member if type_.enum_class else _plain_text)
    if isinstance(type_, types.String):
        return Kind('text', _plain_text, str)
    if isinstance(type_, types.Integer):
        return Kind('int', _integer, int)
    if isinstance(type_, types.Boolean):
        return Kind('bool', _boolean, lambda text: text in ('t', 'true'))
    if isinstance(type_, types.Uuid):
        return Kind('uuid', _uuid, uuid.UUID)
    if isinstance(type_, types.Date):
        return Kind('date', _date, datetime.date.fromisoformat)
    if isinstance(type_, types.DateTime) and precision is None:
        return InstantKind('instant', _aware) if type_.timezone else Kind('datetime', _naive)
    if isinstance(type_, types.Time) and precision is None and not type_.timezone:
        return Kind('time', _time)
    if isinstance(type_, types.Interval) and type_.second_precision is None:
        return Kind('interval', _interval)
    if isinstance(type_, types.LargeBinary):
        return Kind('bytes', _bytes)
    # a negative scale rounds to tens and hundreds
    is_number = isinstance(type_, (types.Numeric, types.Float))
    if is_number and (getattr(type_, 'scale', None) or 0) >= 0:
        return RoundedKind('number', _number)
    return None


# texts


def _plain_text(value: Any) -> str | None:
    # coarser than the comparison of types that ignore blanks at the end, or the case
    if not isinstance(value, str):
        return None
    # a database may take a dotless or dotted I for an i
    return value.casefold().replace('i\u0307', 'i').replace('\u0131', 'i').rstrip(' ')


def _enum_member(value: Any) -> str | None:
    return value.name if isinstance(value, Enum) else None


def _integer(value: Any) -> str | None:
    is_number = type(value) in (int, bool) and SMALLEST <= value <= GREATEST
    return str(int(value)) if is_number else None


def _boolean(value: Any) -> str | None:
    return str(bool(value)) if type(value) in (int, bool) and value in (0, 1) else None


def _uuid(value: Any) -> str | None:
    try:
        return str(value if isinstance(value, uuid.UUID) else uuid.UUID(value))
    except (ValueError, TypeError, AttributeError):
        return None


def _date(value: Any) -> str | None:
    # a datetime is a date, too, but the database may compare its time
    return value.isoformat() if type(value) is datetime.date else None


def _naive(value: Any) -> str | None:
    is_naive = isinstance(value, datetime.datetime) and value.tzinfo is None
    return value.isoformat() if is_naive else None


def _aware(value: Any) -> str | None:
    # the database takes a naive one for one of the session's time zone
    if not isinstance(value, datetime.datetime) or value.utcoffset() is None:
        return None
    try:
        return value.astimezone(datetime.UTC).isoformat()
    except OverflowError:
        return None


def _time(value: Any) -> str | None:
    is_naive = isinstance(value, datetime.time) and value.tzinfo is None
    return value.isoformat() if is_naive else None


def _interval(value: Any) -> str | None:
    is_interval = isinstance(value, datetime.timedelta)
    return str(value // datetime.timedelta(microseconds=1)) if is_interval else None


def _bytes(value: Any) -> str | None:
    return value.hex() if isinstance(value, bytes) else None


def _number(value: Any) -> str | None:
    is_number = isinstance(value, (int, float, Decimal))
    try:
        # not a number is in no order; a Decimal may have millions of digits
        return str(math.floor(value)) if is_number and SMALLEST <= value <= GREATEST else None
    except ArithmeticError:  # a signaling NaN
        return None
