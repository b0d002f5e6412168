"""Instances and enum members come back if their class is registered or found by its name."""

from __future__ import annotations

import collections
import enum
import sys
from dataclasses import make_dataclass
from decimal import Decimal
from typing import Any

import pytest
from ormsgpack import Ext, packb

from onegov_ormcache.errors import ConfigurationError, UndecodableValue, ValueNotCacheable
from onegov_ormcache.tiers.serializer import Serializer
from tests.tiers.serializable import (
    MODULE,
    Color,
    DataUser,
    Level,
    Money,
    Node,
    Point,
    User,
    framed,
)


@pytest.mark.parametrize(
    ('cls', 'message'),
    [
        (User, 'User is mapped'),
        (DataUser, 'DataUser is mapped'),
        (dict, 'no NamedTuple, dataclass or Enum'),
        (Point(1), 'no class'),
        (Node('a'), 'no class'),
        ('Node', 'no class'),
        (make_dataclass('Special', ['a'], bases=(dict,)), 'no NamedTuple, dataclass or Enum'),
    ],
)
def test_only_plain_classes_can_be_registered(cls: Any, message: str) -> None:
    """Mapped classes and all but NamedTuple, dataclass and Enum classes are refused."""
    with pytest.raises(ConfigurationError, match=message):
        Serializer([cls])


def test_two_registered_classes_of_one_name_are_refused() -> None:
    """A stored name stands for one class; the same class may be named twice."""
    first, second = make_dataclass('Twin', ['a']), make_dataclass('Twin', ['a'])
    with pytest.raises(ConfigurationError, match=r'two classes have the name .*Twin'):
        Serializer([first, second])
    Serializer([first, first])


@pytest.mark.parametrize('value', [Point(1), [Point(1), Point(2)], Money(Decimal(1)), Node('a')])
def test_a_class_that_is_not_registered_is_not_decoded(
    serializer: Serializer, value: object
) -> None:
    """Another release's class is a miss, also if its module is imported."""
    with pytest.raises(UndecodableValue, match=r'KeyError.*:(Point|Money|Node)'):
        Serializer().decode(serializer.encode(value).data)


@pytest.mark.parametrize('names', [['a'], ['a', 'b', 'c'], ['b', 'a'], ['a', 'x']])
@pytest.mark.parametrize('make', [make_dataclass, collections.namedtuple])
def test_a_class_whose_fields_have_changed_is_a_miss(make: Any, names: list[str]) -> None:
    """Fields added, removed, renamed or reordered since make the stored value a miss."""
    old, new = make('Changing', ['a', 'b']), make('Changing', names)
    new.__module__ = old.__module__
    data = Serializer([old]).encode(old(1, 2)).data
    assert Serializer([old]).decode(data) == old(1, 2)
    with pytest.raises(UndecodableValue, match='Changing has other fields'):
        Serializer([new]).decode(data)


def test_an_enum_defined_in_a_function_can_be_registered() -> None:
    """An enum class that no module has is refused, unless it is registered."""
    local = enum.Enum('local', 'A B')
    local.__qualname__ = 'somewhere.<locals>.local'
    with pytest.raises(ValueNotCacheable, match=r'value\[0\] is .*not found by this name'):
        Serializer().encode([local.A])
    serializer = Serializer([local])
    assert serializer.decode(serializer.encode(local.B).data) is local.B


@pytest.mark.parametrize(
    'content',
    [
        ['this', 's', 'ZEN'],
        ['this.that', 'Color', 'RED'],
        ['no_such_module_anywhere', 'Color', 'RED'],
        [MODULE, 'NoColor', 'RED'],
        [MODULE, 'Point', 'RED'],
        [MODULE, 'Color', 'GREEN'],
        [MODULE, 'Color.RED', 'RED'],
        [MODULE, 'Right', 'RED'],
        [MODULE, 'Right', 'ff'],
        [MODULE, 'Ejecting', 'ff'],
        [MODULE, 'Open', 'UNKNOWN'],
        [MODULE, 'NoEnum', 'RED'],
        [MODULE, 'holder.Color', 'RED'],
        [MODULE, '', ''],
        [__name__, 'pytest.fixture', 'x'],
        [1, 2, 3],
        [[], [], []],
        [],
        'abc',
    ],
)
def test_an_enum_member_that_is_not_there_is_a_miss(
    serializer: Serializer, content: object
) -> None:
    """A wrong module, class or member is a miss, and no module is imported to look for it."""
    imported = set(sys.modules)
    with pytest.raises(UndecodableValue):
        serializer.decode(framed(packb(Ext(7, packb(content)))))
    assert set(sys.modules) == imported


@pytest.mark.parametrize(('made', 'text'), [(0xFF, 'ff'), (2, 'ff'), (-1, '-1')])
def test_a_flag_with_other_bits_than_its_class_defines_is_a_miss(made: int, text: str) -> None:
    """A combination that a strict class has kept, but would not make, is not trusted."""
    kept = enum.Flag('kept', {'READ': 1, 'WRITE': 2})
    serializer = Serializer([kept])
    content = [kept.__module__, kept.__qualname__, text]
    stray: Any = object.__new__(kept)
    stray._value_, stray._name_ = made, None
    kept._value2member_map_[int(text, 16)] = stray
    with pytest.raises(UndecodableValue, match='no member of'):
        serializer.decode(framed(packb(Ext(7, packb(content)))))
    both = kept.READ | kept.WRITE
    assert serializer.decode(serializer.encode(both).data) is both


def test_an_enum_that_was_renamed_in_its_module_is_refused(
    serializer: Serializer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An enum class is only encoded if it is found again under its name."""
    red = Color.RED
    monkeypatch.setattr(sys.modules[MODULE], 'Color', Level)
    with pytest.raises(ValueNotCacheable, match=r'value\[0\] .*Color is not found by this name'):
        serializer.encode([red])
