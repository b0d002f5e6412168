"""What a program evicts, or reports as changed, by hand.

This module finds the property and the scope that are meant. :mod:`.marking` turns both into tags
of a transaction.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, cast

from sqlalchemy.orm import Session

from ..database.hosts import HostObserver
from ..errors import PropertyError
from .arguments import Arguments
from .descriptors import OrmCacheDescriptor, scope_of
from .marking import TableName, evict, evict_all, mark_changed
from .parts import CacheParts
from .properties import Declaration, Property
from .scope import RequestScope


class ByHand(CacheParts):
    """The methods of a cache by which a program evicts; a base class of :class:`.OrmCache`."""

    def current_scope(self) -> RequestScope:
        """Return the innermost scope of this cache that is open."""
        raise NotImplementedError

    def find(self, instance: Any, name: str) -> Declaration | None:
        """Return the cached property of this name that an object has; None if it has none."""
        raise NotImplementedError

    def resolve(self, declaration: Declaration, instance: Any) -> tuple[Declaration, type]:
        """Return the declaration that counts when this one is read on an object, and the class
        whose property it is."""
        raise NotImplementedError

    def mark_changed(self, *tables: TableName) -> None:
        """Report a change that nothing of the package can see, such as one by another program.

        It is part of the current scope's transaction, like any other change: what depends on
        the tables is evicted when the session commits.

        :param tables: names of tables, mapped classes, or ``Table`` objects.
        :raises UnknownTableError: if the application has no such table.
        :raises OutsideScopeError: outside of a scope.
        """
        scope = self.current_scope()
        self.mark(scope, scope.session(), tables)

    def mark(self, scope: RequestScope, session: Session, tables: Iterable[TableName]) -> None:
        """Report a change as a part of a session's transaction; see :meth:`mark_changed`."""
        mark_changed(scope, session, tables)
        self._marked(scope, session)

    def evict(self, instance: Any, name: str, *args: Any, **kwargs: Any) -> None:
        """Evict the values of an orm-cached property, for all roles, variants and releases.

        It is part of the current scope's transaction, like any other change: others use the values
        until the session commits.

        :param instance: an object whose property it is.
        :param name: the property's name.
        :param args: the arguments of one value, if the property takes arguments; none: all its
            values. Values with other arguments may be evicted with it: one in 256.
        :raises PropertyError: if the object has no such orm-cached property.
        :raises ArgumentError: if the arguments do not fit the property.
        :raises OutsideScopeError: outside of a scope.
        """
        descriptor, prop = self._orm_cached(instance, name, 'evict')
        arguments: Arguments | None = None
        if args or kwargs:
            arguments = descriptor.parameters.bind(args, kwargs)
        self._evict(scope_of(instance), prop.value_tags(arguments))

    def refresh(self, instance: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        """Evict one value of an orm-cached property, and return it, computed anew in this
        transaction.

        Others compute it anew after the commit. See :meth:`evict`.

        :return: the value that the property has for these arguments.
        """
        descriptor, prop = self._orm_cached(instance, name, 'refresh')
        self._evict(
            scope_of(instance), prop.value_tags(descriptor.parameters.bind(args, kwargs))
        )
        return descriptor.load_call(instance, None, args, kwargs)

    def evict_tags(self, tags: Iterable[str]) -> None:
        """Evict all values of the current tenant with any of these tags; see :meth:`evict`.

        :param tags: ``'table:users'``, for example, as in :meth:`recording`.
        :raises UnknownTagError: if one is no tag.
        :raises OutsideScopeError: outside of a scope.
        """
        if isinstance(tags, str) or not isinstance(tags, Iterable):
            tags = (tags,)
        self._evict(self.current_scope(), tuple(tags))

    def evict_all(self) -> None:
        """Evict all values of all properties of the current tenant; see :meth:`evict`.

        :raises OutsideScopeError: outside of a scope.
        """
        scope = self.current_scope()
        session = scope.session()
        evict_all(scope, session)
        self._marked(scope, session)

    def _evict(self, scope: RequestScope, tags: Collection[str]) -> None:
        session = scope.session()
        evict(scope, session, tags)
        self._marked(scope, session)

    def _marked(self, scope: RequestScope, session: Session) -> None:
        scope.taint_run('it reported a change')
        if isinstance(self.observer, HostObserver):
            self.observer.wrote(session)

    def _orm_cached(
        self, instance: Any, name: str, what: str
    ) -> tuple[OrmCacheDescriptor[Any], Property]:
        """Return an orm-cached property of an object by its name.

        :raises PropertyError: if there is none.
        """
        found = self.find(instance, name) if isinstance(name, str) else None
        if not isinstance(found, OrmCacheDescriptor):
            raise PropertyError(
                f'{what}: {type(instance).__qualname__} has no orm-cached property {name!r}'
            )
        declared, owner = self.resolve(found, instance)
        prop = self.registry.property_of(declared, owner)
        return cast('OrmCacheDescriptor[Any]', declared), prop
