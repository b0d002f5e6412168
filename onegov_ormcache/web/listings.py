"""What Dectate's queries and its query tool find of cached properties.

Dectate knows the directives that were used. Most properties are declared in class bodies, and
some are inherited from classes that are no apps. A :class:`PropertyListing` lists them all, as the
committed class has them. This module installs nothing, and does not know the directives.
"""

from __future__ import annotations

import linecache
from collections.abc import Collection, Iterator
from typing import Any, ClassVar

from dectate import Action, convert_bool
from dectate.config import CodeInfo, Directive

from ..core.descriptors import CachedDescriptor, cached_descriptors
from ..core.policies import policy_parts, tables_named


class PropertyListing(Action):
    """One cached property of an app class or of its requests; performing it does nothing.

    Made when the class is committed, after its properties are installed. A subclass lists the
    properties of one kind, and depends on the actions that install properties.
    """

    app_class_arg = True

    #: The class of the descriptors that are listed.
    kind: ClassVar[type[CachedDescriptor[Any]]]

    filter_name = {'policy': 'policies', 'table': 'tables'}
    filter_compare = {
        'policy': lambda parts, wanted: any(is_policy(part, wanted) for part in parts),
        'table': lambda tables, wanted: wanted in tables,
    }
    filter_convert = {'by_role': convert_bool, 'frozen': convert_bool, 'merge': convert_bool}

    #: The same for all: in the order in which they were listed.
    order = 0

    def __init__(self, descriptor: CachedDescriptor[Any], target: str) -> None:
        self.descriptor = descriptor
        self.name = descriptor.name
        self.target = target
        #: The parts of the policy, as they were declared.
        self.policies = tuple(policy_parts(descriptor.cache_policy))
        self.by_role: bool = getattr(descriptor, 'by_role', False)
        self.frozen = descriptor.frozen
        self.merge: bool = getattr(descriptor, 'merge', False)

    @property
    def tables(self) -> Collection[str]:
        """The names of the tables that the policy names; ``'auto'`` and functions name none."""
        return tables_named(self.descriptor.cache_policy, self.descriptor.where)

    def identifier(self, app_class: type[Any]) -> tuple[str, str]:
        return self.target, self.name

    def perform(self, obj: Any, app_class: type[Any]) -> None:
        pass

    @classmethod
    def before(cls, app_class: type[Any]) -> None:
        """Leave out the listings of base classes: the class itself has what it inherits, but for
        what it overrides, maybe by the other kind."""
        configurable = app_class.dectate
        group = configurable.get_action_group(cls)
        group.extends.clear()
        group.prepare(configurable)

    @classmethod
    def after(cls, app_class: type[Any]) -> None:
        """List the properties of the class. It has them all: other actions were performed."""
        configurable = app_class.dectate
        group = configurable.get_action_group(cls)
        directives = {
            action.identifier(app_class): action.directive
            for each in cls.depends
            for action, _ in configurable.get_action_group(each).get_actions()
        }
        for target, descriptor in targets_of(app_class):
            if isinstance(descriptor, cls.kind):
                listing = cls(descriptor, target)
                listing.directive = directives.get(listing.identifier(app_class)) or Directive(
                    cls, code_info(descriptor.creator, descriptor.location), app_class, (), {}
                )
                group.add(listing, descriptor.creator)
        group.prepare(configurable)


def targets_of(app_class: type[Any]) -> Iterator[tuple[str, CachedDescriptor[Any]]]:
    """Yield the cached properties of an app class and of its requests, each with its target."""
    for target, owner in (('app', app_class), ('request', app_class.request_class)):
        for descriptor, _ in cached_descriptors(owner):
            yield target, descriptor


def code_info(creator: Any, location: str) -> CodeInfo:
    """Return where a creator is defined, with the line, as Dectate tells it of a directive."""
    path, _, line = location.rpartition(':')
    if not line.isdecimal():
        return CodeInfo(location, 0, None)  # no function of a file
    return CodeInfo(path, int(line), linecache.getline(path, int(line)).strip() or None)


def is_policy(part: Any, wanted: Any) -> bool:
    """Return whether a part of a policy is the wanted one, or the one of this text.

    :param wanted: a part; or the text ``on-table-change:users``, ``auto``, the dotted name of a
        class or function, or the name of a table.
    """
    return part is wanted or (isinstance(wanted, str) and _text(part) == wanted)


def _text(part: Any) -> str:
    name = getattr(part, '__qualname__', None)
    return str(part) if name is None else f'{part.__module__}.{name}'
