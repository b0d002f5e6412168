"""The properties of one cache, and which of them a changed object concerns.

This module knows policies and tags. It does not know the values of properties.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import InstanceState, Session, object_session

from ..database.loaded import is_loaded_here
from ..database.observer import Observer
from ..database.sessions import ScopedSession, observed, owner_of
from ..database.signals import tables_of
from ..errors import PropertyConflictError
from ..forks import OwnLock
from ..tags.snapshot import (
    CODE_TAG,
    PROPERTY_TAG,
    ROWS_TAG,
    TABLE_TAG,
    VALUE_TAG,
    whole_tag,
)
from .objects import value_after, value_before
from .policies import (
    ChangeKind,
    concerns,
    depends_on_shared,
    resolve_policy,
    table_tags,
)
from .properties import Declaration, Property, location
from .protocols import ChangedScope
from .rows import Plan, RowPolicies


class Registry:
    """The properties of one cache. Made by the cache and ended with it; used by all threads.

    :param observer: knows the tables, and sends signals for changed objects.
    :param release: the application's release, part of every value's key.
    """

    def __init__(self, observer: Observer, release: str) -> None:
        self._observer = observer
        self._release = release
        self._properties: dict[tuple[Declaration, type], Property] = {}
        # by key, the creator and the class whose property has it
        self._keys: dict[str, tuple[Callable[[Any], Any], type]] = {}
        self._with_functions: tuple[Property, ...] = ()
        self._is_connected = False
        self._lock = OwnLock()
        #: The names of tables that tenants share, each with its schema.
        self.shared_tables = observer.shared_tables
        self._shared_dependencies = depends_on_shared(
            observer.reached_from, self.shared_tables
        )
        #: The tags of all properties whose policies are functions.
        self.function_tags: frozenset[str] = frozenset()
        #: The policies for rows.
        self.rows = RowPolicies()
        #: The tags whose policies this application judges itself: a writer that does not have them
        #: changes them by any change.
        self.known_tags: frozenset[str] = frozenset()

    @property
    def properties(self) -> list[Property]:
        """All properties that were bound, in that order."""
        with self._lock.present:
            return list(self._properties.values())

    @property
    def own_tags(self) -> frozenset[str]:
        """All tags of this application beside those of tables; of buckets, those that stand for
        them."""
        return self.known_tags.union(prop.value_tag for prop in self._properties.values())

    @property
    def names(self) -> frozenset[str]:
        """The names of all properties that are bound, each with its class."""
        with self._lock.present:
            return frozenset(prop.where for prop in self._properties.values())

    def spelled_out(self, tags: Iterable[str]) -> frozenset[str]:
        """Return tags by which values are found: for rows without a bucket the tag of all rows,
        for a property with arguments those of its values. All others stay as they are.
        """
        found: set[str] = set()
        for tag in tags:
            if tag.startswith(ROWS_TAG) and whole_tag(tag) is None:
                found.add(PROPERTY_TAG + tag)
            elif tag.startswith(VALUE_TAG) and whole_tag(tag) is None:
                properties = [p for p in self._properties.values() if p.value_tag == tag]
                found.update({tag}, *(prop.value_tags(None) for prop in properties))
            else:
                found.add(tag)
        return frozenset(found)

    def evicted_by(self, tags: Collection[str]) -> frozenset[str]:
        """Return the names of the orm-cached properties that have one of these tags by their
        policies; of properties with arguments, those of which some values may have one.

        What a property of the policy ``'auto'`` depends on is known of its values alone.
        """
        named = {whole_tag(tag) or tag for tag in tags}.union(tags)
        return frozenset(
            prop.where for prop in self.properties
            if not prop.declaration.is_request_cached
            and (CODE_TAG in named or not named.isdisjoint(
                prop.tags | prop.by_rows | {prop.value_tag}
            ))
        )  # fmt: skip

    # properties

    def property_of(self, declaration: Declaration, owner: type) -> Property:
        """Return the property of a declaration on a class; bind it if it is new.

        :raises PolicyError: if the policy names a table that the application does not have.
        :raises PropertyConflictError: if another creator or class has a property of the same
            name.
        """
        prop = self._properties.get((declaration, owner))
        return prop if prop is not None else self._bind(declaration, owner)

    def _bind(self, declaration: Declaration, owner: type) -> Property:
        policy = resolve_policy(
            declaration.cache_policy,
            self._observer.tables,
            f'{owner.__qualname__}.{declaration.name} ({declaration.location})',
            declaration.parameters.names,
        )
        prop = Property(declaration, owner, policy, self._release)
        # rows of a shared table, or of one that changes with it, are those of all tenants
        by_shared = self.with_shared(prop.by_rows) - prop.by_rows
        by_shared |= prop.by_rows & table_tags(self.shared_tables)
        prop.tags = self.with_shared(prop.tags) | by_shared
        if policy.functions:
            # only the tenant that changes a shared table asks the function policy about the
            # object; for all others, the property depends on every shared table
            prop.tags |= self._shared_dependencies.get(None, frozenset())
        with self._lock.present:
            self._refuse_twin(prop, owner)
            prop = self._properties.setdefault((declaration, owner), prop)
            self._with_functions = tuple(p for p in self._properties.values() if p.functions)
            self.rows = self.rows.with_policies(rows for rows, _ in prop.rows)
            self._observer.watch_rows(self.rows.columns)
            if self._is_connected:
                self.connect()  # this may be the first policy that is asked about objects
            self.function_tags = frozenset(
                p.function_tag for p in self._with_functions if p.function_tag
            )
            # last: a transaction that begins with a tag takes its policy for asked about all
            # its changes
            self.known_tags = self.function_tags | self.rows.tags
        return prop

    def _refuse_twin(self, prop: Property, owner: type) -> None:
        """Raise if another creator or class has a property of this key: they would share their
        values."""
        creator = prop.declaration.creator
        known_creator, known_owner = self._keys.setdefault(prop.key, (creator, owner))
        if known_creator is not creator or known_owner is not owner:
            raise PropertyConflictError(
                f'{prop.where} ({prop.declaration.location}): there is another property of this '
                f'name, declared at {location(known_creator)}, maybe on another class of the same '
                'name. They would share their values; rename one of them'
            )

    def with_shared(self, tags: Collection[str]) -> frozenset[str]:
        """Return the tags, and those of shared tables that cascade into their tables.

        The tenant that changes a shared table collects the tags of the cascade for its own
        schema only. Other tenants learn of the change by the shared table's tag.
        """
        return frozenset(tags).union(*(self._shared_dependencies.get(tag, ()) for tag in tags))

    def of_metadata(self, tags: Collection[str]) -> set[str]:
        """Return those of the tags that are of tables which the metadata has."""
        return {tag for tag in tags if self._observer.has_table(tag.removeprefix(TABLE_TAG))}

    # changed objects

    def connect(self) -> None:
        """Begin to ask the policies for rows and the function policies, if there are any, about
        the objects of each flush."""
        self._is_connected = True
        if self._with_functions or self.rows:
            for signal, handler in self._handlers():
                signal.connect(handler)

    def disconnect(self) -> None:
        """Stop asking the policies."""
        for signal, handler in self._handlers():
            signal.disconnect(handler)

    def handle_change(
        self, schema: str, obj: object, prop: Property, session: Session | None = None
    ) -> None:
        """Collect the tags of one property that a changed object concerns: those of the object's
        tables, and that of the function policy if it says so.

        :param session: the object's session; by default the one that the object is in.
        :raises ConfigurationError: if nobody observes that session.
        """
        session = session or object_session(obj)
        if session is not None:
            observed(session)
        scope = scope_of_change(schema, obj, session)
        if scope is not None:
            tables = set(tables_of(type(obj)))
            # a host's own signal may come at any time, when nothing tells what was before
            scope.changed(prop.tags & table_tags(tables))
            for rows, _ in prop.rows:
                if not tables.isdisjoint(rows.tables):
                    scope.rows_changed(rows, None)
            self._collect(scope, obj, 'update', (prop,))

    def _handlers(self) -> Iterator[tuple[Any, Callable[[str, object], None]]]:
        yield self._observer.on_insert, self._inserted
        yield self._observer.on_update, self._updated
        yield self._observer.on_delete, self._deleted

    def _inserted(self, schema: str, obj: object) -> None:
        self._ask(schema, obj, 'insert', self._with_functions)

    def _updated(self, schema: str, obj: object) -> None:
        self._ask(schema, obj, 'update', self._with_functions)

    def _deleted(self, schema: str, obj: object) -> None:
        self._ask(schema, obj, 'delete', self._with_functions)

    def _ask(
        self, schema: str, obj: object, change: ChangeKind, properties: Iterable[Property]
    ) -> None:
        """Collect the tags of the policies that a changed object concerns."""
        scope = scope_of_change(schema, obj, object_session(obj))
        if scope is not None:
            for plan in self.rows.plans(type(obj)) if self.rows else ():
                _collect_rows(scope, inspect(obj), change, plan)
            self._collect(scope, obj, change, properties)

    def _collect(
        self, scope: ChangedScope, obj: object, change: ChangeKind, properties: Iterable[Property]
    ) -> None:
        for prop in properties:
            if prop.function_tag and concerns(prop.functions, obj, change, prop.where):
                scope.changed({prop.function_tag})


def _collect_rows(
    scope: ChangedScope, state: InstanceState[Any], change: ChangeKind, plan: Plan
) -> None:
    """Collect the tags of the rows of one policy that a flush has written for an object.

    Its statement names the row by the primary key. Any other column may have got another value by
    a commit since the object was loaded, so what was loaded counts only if no such commit has
    changed the rows with this value meanwhile; see :meth:`.WritePath.rows_changed`.
    """
    policy, attributes = plan.policy, plan.attributes
    if attributes is None or scope.has_all_rows(policy):
        scope.rows_changed(policy, None)
        return
    loaded: Collection[int] | None = ()
    written: Collection[int] | None = ()
    if change != 'delete':
        written = policy.buckets_written([value_after(state, each) for each in attributes])
    if change != 'insert':
        if change == 'update' and state.committed_state.keys().isdisjoint(attributes):
            loaded = written  # the flush has not changed them
        else:
            loaded = policy.buckets_written([value_before(state, each) for each in attributes])
    if loaded is None or written is None:
        scope.rows_changed(policy, None)
    elif plan.identifies:
        scope.rows_changed(policy, {*loaded, *written})
    elif loaded and not is_loaded_here(state):
        scope.rows_changed(policy, None)
    else:
        scope.rows_changed(policy, {*loaded, *written}, loaded)


def scope_of_change(
    schema: str, obj: object, session: Session | None
) -> ChangedScope | None:
    """Return the scope that the session of a changed object belongs to.

    :param schema: the tenant that the signal names.
    :return: None if the object has no session, or none of a scope of this tenant.
    """
    scope: Any = owner_of(session) if isinstance(session, ScopedSession) else None
    return scope if scope is not None and scope.schema == schema else None
