"""Values with named parts: instances of classes that the application registers.

This module also finds classes by name. It looks them up only in the registry and in modules
that are imported already: stored bytes can't cause an import.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import fields, is_dataclass
from enum import Enum, EnumType, Flag, FlagBoundary
from functools import cached_property, reduce
from inspect import getattr_static
from operator import or_
from types import ModuleType
from typing import Any, Protocol

from onegov_ormcache.errors import ConfigurationError
from onegov_ormcache.tiers.refusals import ORM_OBJECT, Refused, class_name, is_orm_object

_SETTING = 'the setting `types` of the section `orm_cache`'
_CONTAINERS = (str, bytes, int, float, list, tuple, dict, set, frozenset, BaseException)


class Record(Protocol):
    """Takes the instances of one registered class apart, and makes them again.

    The registry makes it for each class.
    """

    type: type
    #: The class's name in stored values, see :func:`registered_name`.
    name: str
    fields: tuple[str, ...]
    #: True if the fields of an instance can't be assigned to.
    immutable: bool

    def values(self, instance: Any) -> tuple[object, ...]:
        """Return the values of the fields.

        :raises Refused: if the instance has other attributes too, which would be lost, or if
            a field has no value.
        """

    def build(self, values: Iterable[object]) -> object:
        """Return an instance with these values, without running code of the class."""


class _NamedTupleRecord:
    immutable = True

    def __init__(self, cls: Any) -> None:
        self.type = cls
        self.name = registered_name(cls)
        self.fields: tuple[str, ...] = tuple(cls._fields)

    def values(self, instance: Any) -> tuple[object, ...]:
        refuse_extras(instance, ())
        return tuple(instance)

    def build(self, values: Iterable[object]) -> object:
        return tuple.__new__(self.type, values)


class DataclassRecord:
    """The record of a dataclass."""

    def __init__(self, cls: Any) -> None:
        self.type = cls
        self.name = registered_name(cls)
        self.fields = tuple(field.name for field in fields(cls))
        self.immutable: bool = cls.__dataclass_params__.frozen

    def values(self, instance: Any) -> tuple[object, ...]:
        if hasattr(self.type, '_sa_class_manager'):
            raise Refused(f'is of type {class_name(self.type)}, {ORM_OBJECT}')
        refuse_extras(instance, self.fields)
        try:
            return tuple([getattr(instance, name) for name in self.fields])
        except AttributeError as error:
            raise Refused(
                f'is of type {class_name(self.type)}, and a field of it has no value '
                f'({error}). Give each field a value.'
            ) from None

    def build(self, values: Iterable[object]) -> object:
        instance = object.__new__(self.type)
        for name, value in zip(self.fields, values, strict=True):
            object.__setattr__(instance, name, value)
        return instance


class Registry:
    """The classes of an application whose instances may be cached.

    Made once per serializer, and never changed afterwards.

    :param types: NamedTuple, dataclass and Enum classes.
    :param known: the records of classes that need no registration.
    :raises ConfigurationError: if one of them is of another kind, is mapped by the ORM, or
        has the same name as another.
    """

    def __init__(self, types: Iterable[type], known: Iterable[Record] = ()) -> None:
        self.records: dict[str, Record] = {record.name: record for record in known}
        self._enums: dict[str, EnumType] = {}
        for cls in types:
            self._add(cls)

    def _add(self, cls: type) -> None:
        if not isinstance(cls, type):
            raise ConfigurationError(f'{_SETTING}: {cls!r} is no class.')
        name = registered_name(cls)
        record = self.records.get(name)
        known = self._enums.get(name) if record is None else record.type
        if known is not None and known is not cls:
            raise ConfigurationError(
                f'{_SETTING}: two classes have the name {name}. Rename one of them.'
            )
        if isinstance(cls, EnumType):
            self._enums[name] = cls
        elif known is None:
            self.records[name] = _record(cls)

    def enum(self, module: str, qualname: str) -> EnumType:
        """Return the enum class of this name, a registered one first.

        :raises LookupError: if neither the registry nor the imported modules have it.
        """
        if registered := self._enums.get(f'{module}:{qualname}'):
            return registered
        found = find_class(module, qualname)
        if not isinstance(found, EnumType):
            raise LookupError(f'there is no enum class {module}:{qualname}')
        return found


def find_class(module: str, qualname: str) -> type | None:
    """Return the class of this name; None if no module that is imported already has it."""
    found: object = sys.modules.get(module)
    for part in qualname.split('.'):
        if not isinstance(found, (ModuleType, type)):
            return None
        found = vars(found).get(part)
    return found if isinstance(found, type) else None


def registered_name(cls: type) -> str:
    """Return the name of a class in stored values."""
    return f'{cls.__module__}:{cls.__qualname__}'


def _record(cls: type) -> Record:
    if is_orm_object(cls):
        raise ConfigurationError(f'{_SETTING}: {class_name(cls)} is mapped, {ORM_OBJECT}')
    if is_dataclass(cls) and not issubclass(cls, _CONTAINERS):
        return DataclassRecord(cls)
    if issubclass(cls, tuple) and hasattr(cls, '_fields'):
        return _NamedTupleRecord(cls)
    raise ConfigurationError(
        f'{_SETTING}: {class_name(cls)} is no NamedTuple, dataclass or Enum class.'
    )


def refuse_extras(instance: object, names: tuple[str, ...]) -> None:
    """Raise Refused if an instance has attributes besides its fields: they would be lost.

    The value of a ``cached_property`` may be lost, because it is computed from the fields.
    """
    for name in getattr(instance, '__dict__', ()):
        if name in names:
            continue
        if isinstance(getattr_static(type(instance), name, None), cached_property):
            continue
        raise Refused(
            f'is of type {class_name(type(instance))} with the attribute {name!r} '
            'that is no field of it and would be lost. Make it a field.'
        )


def write_member(member: Enum) -> list[str]:
    """Return the module, class and name of an enum member; for a flag, the bits as the name.

    :raises Refused: if the class does not have the member by its name.
    """
    cls = type(member)
    if isinstance(member, Flag):
        text = f'{member.value:x}'
    else:
        text = member.name
        if cls.__members__.get(text) is not member:
            raise Refused(
                f'is {member!r}, no member of {class_name(cls)} by its name. '
                'Return its value instead.'
            )
    return [cls.__module__, cls.__qualname__, text]


def read_member(registry: Registry, module: str, qualname: str, text: str) -> Enum:
    """Return the member that :func:`write_member` wrote.

    :param text: the name, or the bits in hexadecimal.
    :raises Exception: of any kind, if there is no such member.
    """
    cls: Any = registry.enum(module, qualname)
    is_flag = issubclass(cls, Flag)
    member: Enum = cls(int(text, 16)) if is_flag else cls.__members__[text]
    if type(member) is not cls or (is_flag and not _has_bits(member, int(text, 16))):
        raise LookupError(f'{text} is no member of {module}:{qualname}')
    return member


def _has_bits(member: Any, bits: int) -> bool:
    """Return whether a flag has these bits, and no bit that its class does not define.

    A class keeps the combinations that were once made and returns them without a check, so
    it may return one that it would refuse to make.
    """
    cls = type(member)
    if member.value != bits:
        return False
    if cls.__members__.get(member.name) is member or cls._boundary_ is FlagBoundary.KEEP:
        return True
    defined = reduce(or_, [each.value for each in cls.__members__.values()], 0)
    return bits & ~defined == 0
