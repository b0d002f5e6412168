"""Properties: declarations that are bound to a class, with their keys and tags.

This module does not know the values of properties, or how they are computed and stored.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from hashlib import blake2b
from typing import Any, NamedTuple, Protocol

from ..statistics.fields import PropertyFields
from ..tags.snapshot import BUCKETS, PROPERTY_TAG, VALUE_TAG
from .arguments import NO_ARGUMENTS, Arguments, Parameters
from .expiry import Expires
from .policies import CachePolicy, Policy, table_tags
from .rows import RowPolicy
from .variants import Vary

#: The most characters by which a value's key is longer than that of its property; what is longer
#: is replaced by a hash.
MAX_SUFFIX = 200

#: Seconds by which the time that Redis tells may be wrong.
CLOCK_ERROR = 0.1

#: The number of values of a property of which is remembered that they could not be stored.
REMEMBERED_UNSTORED = 1000


class Declaration(Protocol):
    """A property as it is declared, not yet bound to a class; descriptors are declarations."""

    name: str
    #: File and line of the creator, for messages.
    location: str
    creator: Callable[..., Any]
    #: The parameters of the creator beside the instance.
    parameters: Parameters
    #: Computes the values of several calls at once; None if there is no such function.
    many: Callable[..., Any] | None
    cache_policy: CachePolicy
    #: The functions by which the property varies, beside tenant and class.
    varies: tuple[Vary, ...]
    frozen: bool
    expires: Expires
    is_request_cached: bool
    #: True if its values are whole responses, which are not attributes of a class.
    is_response: bool

    def covers(self, varies: Collection[Vary], instance: Any) -> bool:
        """Return whether its values may be made of one that varies by these functions.

        :param instance: the app, request or other object whose property that value is.
        """

    def checked(self, value: Any) -> Any:
        """Return a value that was decoded; raise :class:`.UndecodableValue` if it is damaged."""

    def create(self, instance: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the creator for this instance and return its result; return all rows of a query
        as a tuple."""

    def create_many(self, instance: Any, items: list[Any]) -> Mapping[Any, Any]:
        """Compute the values of several items by :attr:`many`; some may be missing."""


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
        #: The key of its values, apart from tenant, arguments and variant.
        self.key = f'{release}:{self.where}'
        #: What is counted of it.
        self.counted = PropertyFields(self.where)
        expires = declaration.expires
        #: The most seconds for which a value may be used; None: there is no bound.
        self.longest = None if expires is None or callable(expires) else expires + CLOCK_ERROR
        self.auto = policy.auto
        self.functions = policy.functions
        self.function_tag = PROPERTY_TAG + self.key if policy.functions else None
        names = declaration.parameters.names
        #: True if it is a function of arguments.
        self.takes_arguments = bool(names)
        #: The policies for rows, each with the positions of the arguments that it takes.
        self.rows: tuple[tuple[RowPolicy, tuple[int, ...]], ...] = tuple(
            (rows, tuple(map(names.index, arguments))) for rows, arguments in policy.rows
        )
        #: The tags of the tables of which its values depend on single rows.
        self.by_rows = table_tags({table for rows, _ in self.rows for table in rows.tables})
        #: The tag of its values, which changes by hand alone. It is without release, because that
        #: concerns the values of all releases.
        self.value_tag = VALUE_TAG + self.where
        #: The tags that all its values have; a registry adds those of shared tables.
        self.tags = policy.tags | ({self.function_tag} if self.function_tag else set())
        if not names:
            self.tags |= {self.value_tag}
        #: The keys of the values that could not be stored when they were last computed, up to
        #: :data:`REMEMBERED_UNSTORED`. A hint that nobody should wait for a run; each run has a
        #: verdict of its own.
        self.unstored: set[str] = set()
        #: The messages about it that were logged, or their subjects; each is logged once.
        self.logged: set[str] = set()

    def __repr__(self) -> str:
        return f'<Property {self.where} {sorted(self.tags)}>'

    def call(
        self, instance: Any, arguments: Arguments = NO_ARGUMENTS, variant: str = ''
    ) -> Call:
        """Return a call of the property.

        :param variant: what beside the arguments tells its values apart, as a text.
        :raises ArgumentError: if an argument can't be part of a key.
        """
        if not self.takes_arguments:
            key = self.key + _short(variant) if variant else self.key
            return Call(self, instance, key, self.tags, arguments)
        text = self.declaration.parameters.text(arguments)
        tags = {*self.tags, self._tag_of(text)}
        for rows, positions in self.rows:
            values = [arguments.values[at] for at in positions]
            # of a value that the database may take for others, all rows count
            tags |= rows.tags_for(values) or table_tags(rows.tables)
        key = self.key + _short(text + variant)
        return Call(self, instance, key, frozenset(tags), arguments)

    def value_tags(self, arguments: Arguments | None) -> frozenset[str]:
        """Return the tags of the values with these arguments, whatever their variants.

        :param arguments: None: of all its values.
        """
        if not self.takes_arguments:
            return frozenset((self.value_tag,))
        if arguments is None:
            return frozenset(f'{self.value_tag}/{at}' for at in range(BUCKETS))
        return frozenset((self._tag_of(self.declaration.parameters.text(arguments)),))

    def _tag_of(self, text: str) -> str:
        data = text.encode(errors='surrogatepass')
        return f'{self.value_tag}/{blake2b(data, digest_size=1).digest()[0]}'

    def remember_unstored(self, key: str, is_unstored: bool) -> None:
        """Remember whether the value of a key could not be stored; see :attr:`unstored`."""
        if not is_unstored:
            self.unstored.discard(key)
        elif len(self.unstored) < REMEMBERED_UNSTORED:
            self.unstored.add(key)


class Call(NamedTuple):
    """One value of a property, as it is asked for; made for each read that no hit answers."""

    prop: Property
    #: The app, the request or other object whose property is read.
    instance: Any
    #: The key of the value, with arguments and variant, without the tenant.
    key: Any
    #: The tags that the value has, whatever its creator reads.
    tags: frozenset[str]
    arguments: Arguments = NO_ARGUMENTS

    def create(self) -> Any:
        """Run the creator, and return its result."""
        return self.prop.declaration.create(
            self.instance, *self.arguments.positional, **self.arguments.keywords
        )


def tags_of(calls: Sequence[Call]) -> frozenset[str]:
    """Return the tags of several calls."""
    return calls[0].tags if len(calls) == 1 else frozenset().union(*(c.tags for c in calls))


def _short(suffix: str) -> str:
    """Return the end of a key, or a hash if it is long. No other end begins with a ``#``."""
    if len(suffix) <= MAX_SUFFIX:
        return suffix
    data = suffix.encode(errors='surrogatepass')
    return '#' + blake2b(data, digest_size=24).hexdigest()


def _name_on(owner: Any, declaration: Declaration) -> str:
    """Return a name that no other property of the same class has."""
    name = declaration.name
    if declaration.is_response or getattr(owner, name, None) is declaration:
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
