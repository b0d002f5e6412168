"""Properties: a declaration on one class, with its key and its tags."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from ..tags.snapshot import PROPERTY_TAG
from .policies import CachePolicy, Policy
from .variants import Vary


class Declaration(Protocol):
    """What is said of a property where it is declared; a descriptor is one."""

    name: str
    #: File and line of the creator, for messages.
    location: str
    creator: Callable[[Any], Any]
    cache_policy: CachePolicy
    #: What its values differ by, beside tenant and class.
    varies: tuple[Vary, ...]
    frozen: bool
    is_request_cached: bool

    def create(self, instance: Any) -> Any:
        """Run the creator for this instance; queries are fetched whole."""


class Property:
    """A declaration on one class, made by a cache when it is bound; lives as long as that.

    :param owner: the concrete class whose property it is: an application class, or any
        other of a program without one.
    :param release: the application's release.
    """

    def __init__(
        self, declaration: Declaration, owner: type, policy: Policy, release: str
    ) -> None:
        self.declaration = declaration
        self.name = declaration.name
        self.where = f'{owner.__module__}.{owner.__qualname__}.{_name_on(owner, declaration)}'
        #: What its values are kept under, before tenant and variant.
        self.key = f'{release}:{self.where}'
        self.auto = policy.auto
        self.functions = policy.functions
        self.function_tag = PROPERTY_TAG + self.key if policy.functions else None
        #: The tags that the policy declares.
        self.tags = policy.tags | ({self.function_tag} if self.function_tag else set())
        #: Whether the last run could not be stored, so that waiting for one is useless.
        self.never_stored = False
        #: What the log has of it; each message is logged once.
        self.logged: set[str] = set()

    def __repr__(self) -> str:
        return f'<Property {self.where} {sorted(self.tags)}>'


def _name_on(owner: Any, declaration: Declaration) -> str:
    """Return what tells a property from all others of the same class."""
    name = declaration.name
    if getattr(owner, name, None) is declaration:
        return name
    if getattr(getattr(owner, 'request_class', None), name, None) is declaration:
        return f'request.{name}'
    # overridden, and read by super()
    creator: Any = declaration.creator
    return f'super({creator.__module__}.{creator.__qualname__}).{name}'
