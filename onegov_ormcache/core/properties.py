"""Properties: declarations that are bound to a class, with their keys and tags.

This module does not know the values of properties, or how they are computed and stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, Protocol

from ..tags.snapshot import PROPERTY_TAG
from .policies import CachePolicy, Policy
from .variants import Vary


class Declaration(Protocol):
    """A property as it is declared, not yet bound to a class; descriptors are declarations."""

    name: str
    #: File and line of the creator, for messages.
    location: str
    creator: Callable[[Any], Any]
    cache_policy: CachePolicy
    #: The functions by which the property varies, beside tenant and class.
    varies: tuple[Vary, ...]
    frozen: bool
    is_request_cached: bool

    def create(self, instance: Any) -> Any:
        """Run the creator for this instance and return its result; return all rows of a query
        as a tuple."""


class Property:
    """A declaration that is bound to one class.

    Made by a cache, at the latest when the property is first used; lives as long as the cache.

    :param declaration: the descriptor.
    :param owner: the concrete class whose property it is: an application class, or in a
        program without Morepath any other.
    :param policy: the declaration's policy, checked.
    :param release: the application's release.
    """

    def __init__(
        self, declaration: Declaration, owner: type, policy: Policy, release: str
    ) -> None:
        self.declaration = declaration
        self.name = declaration.name
        self.where = f'{owner.__module__}.{owner.__qualname__}.{_name_on(owner, declaration)}'
        #: The key of its values, apart from tenant and variant.
        self.key = f'{release}:{self.where}'
        self.auto = policy.auto
        self.functions = policy.functions
        self.function_tag = PROPERTY_TAG + self.key if policy.functions else None
        #: The tags that the policy gives; a registry adds those of shared tables.
        self.tags = policy.tags | ({self.function_tag} if self.function_tag else set())
        #: True if the last run could not be stored. A hint that nobody should wait for a run;
        #: each run has a verdict of its own.
        self.never_stored = False
        #: The messages about it that were logged, or their subjects; each is logged once.
        self.logged: set[str] = set()

    def __repr__(self) -> str:
        return f'<Property {self.where} {sorted(self.tags)}>'


def _name_on(owner: Any, declaration: Declaration) -> str:
    """Return a name that no other property of the same class has."""
    name = declaration.name
    if getattr(owner, name, None) is declaration:
        return name
    if getattr(getattr(owner, 'request_class', None), name, None) is declaration:
        return f'request.{name}'
    # overridden, and read by super()
    creator: Any = declaration.creator
    return f'super({creator.__module__}.{creator.__qualname__}).{name}'


def location(function: Any) -> str:
    """Return file and line of a function's definition; its ``repr`` if they are not known."""
    code = getattr(inspect.unwrap(function), '__code__', None) if callable(function) else None
    return f'{code.co_filename}:{code.co_firstlineno}' if code else repr(function)
