"""Ambient scopes: the scopes of a host, which has sessions and transactions of its own.

A host opens no scopes. Each of its threads has one for each tenant, made when it is needed, and
used until the host begins its next request. Its snapshot ends with the host's transaction. This
module commits nothing, and does not know how a host finds its tenant or makes its sessions: it
asks, each time.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy.orm import Session, scoped_session

from ..database.hosts import HostObserver
from ..database.names import NOWHERE
from ..database.sessions import ScopedSession, TenantSession, observed
from ..database.transactions import current_scope
from ..errors import ConfigurationError
from ..forks import check, register
from .ambient_scope import AmbientScope
from .lending import finder
from .protocols import ScopeCache

log = logging.getLogger(__name__)

#: The number of scopes that a thread keeps between two requests.
KEPT_SCOPES = 64


class _Here:
    """What one thread has, or one task of an event loop: tasks take turns in one thread."""

    def __init__(self) -> None:
        self.scopes: dict[str, AmbientScope] = {}
        #: The function that was last called for this thread, see ``AmbientScopes.on_thread``.
        self.told: Any = None
        #: The scopes in which creators run, the innermost last.
        self.running: list[AmbientScope] = []
        #: The tenant that was entered last.
        self.entered: str | None = None


class _Heres(threading.local):
    """What one thread has, and each of the tasks that it runs."""

    def __init__(self) -> None:
        self.of_thread = _Here()
        self.of_tasks: WeakKeyDictionary[Any, _Here] = WeakKeyDictionary()

    def find(self) -> _Here:
        """Return what the present task has, or the thread if no task is running."""
        loop = asyncio._get_running_loop()
        task = None if loop is None else asyncio.current_task(loop)
        if task is None:
            return self.of_thread
        return self.of_tasks.setdefault(task, _Here())


class AmbientScopes:
    """The ambient scopes of one cache. Made by the cache and ended with it; used by all threads.

    :param cache: the cache whose values the scopes read.
    :param observer: tells of the host's transactions.
    :param session: returns the host's present session; by default the observer knows it.
    :param schema: returns the tenant that the host works for at present; by default the observer
        knows it, or it is the one that was entered last.
    :param shown: returns a mapping of the host that is shown the values of the request tier.
    """

    def __init__(
        self,
        cache: ScopeCache,
        observer: HostObserver,
        session: Callable[[], Session] | None = None,
        schema: Callable[[], str | None] | None = None,
        shown: Callable[[], MutableMapping[Any, Any]] | None = None,
    ) -> None:
        self.cache = cache
        self.observer = observer
        self._session = session or observer.session
        self._find_session = None if observer.registry is None else finder(observer.registry)
        self._schema = schema or observer.present_schema
        self._shown = shown
        self._heres = _Heres()
        # whether the host's function for its session returned that of its registry; None: unknown
        self._uses_registry: bool | None = None
        self.is_closed = False
        #: Called once in each thread that uses a scope, before it does.
        self.on_thread: Callable[[], object] | None = None
        if observer.attendant is not None:
            raise ConfigurationError(
                f'{observer!r} has a cache already; close that one, or observe once for each'
            )
        observer.attendant = self
        _ALL.add(self)
        register(self)

    def close(self) -> None:
        """Let all scopes refuse any further use."""
        self.is_closed = True
        self.observer.attendant = None
        current = current_scope.get()
        if isinstance(current, AmbientScope) and current._scopes is self:
            current_scope.set(None)

    def after_fork(self) -> None:
        """Forget the scopes of the parent; called in a forked child."""
        self._heres = _Heres()

    # scopes

    @property
    def _here(self) -> _Here:
        return self._heres.find()

    def scope(self, schema: str) -> AmbientScope:
        """Return this thread's scope of a tenant; make it if it is missing."""
        check()
        here = self._here
        if here.told is not self.on_thread:
            here.told = self.on_thread
            if self.on_thread is not None:
                self.on_thread()
        scopes = here.scopes
        found = scopes.get(schema)
        if found is None:
            self.cache.enter_process()
            if len(scopes) >= KEPT_SCOPES:
                self._drop_idle()
            found = scopes[schema] = AmbientScope(self, here, schema, self._shown)
        if not self.cache.is_reached:
            self.cache.reach_servers()
        return found

    def of_this_thread(self) -> list[AmbientScope]:
        """Return the scopes that this thread has."""
        return list(self._here.scopes.values())

    def is_present(self, scope: AmbientScope) -> bool:
        """Return whether this thread is a scope's, and the host works for its tenant."""
        return self._heres.find() is scope.home and self.present_schema() == scope.schema

    def present_schema(self) -> str | None:
        """Return the tenant that the host works for in this thread; None if there is none."""
        return self._schema() if self._schema is not None else self._here.entered

    def present(self) -> AmbientScope | None:
        """Return this thread's scope of the present tenant; None if there is none.

        It becomes the current scope, unless a scope of another cache is that.
        """
        schema = self.present_schema()
        if schema is None:
            return None
        scope = self.scope(self.observer.check_schema(schema))
        self.taint_others(scope)
        scope.follow_session()
        current = current_scope.get()
        if current is not scope and (current is None or isinstance(current, AmbientScope)):
            current_scope.set(scope)
        return scope

    def taint_others(self, scope: AmbientScope) -> None:
        """Taint the runs of this thread's other scopes, because they use this one."""
        for other in self._here.running:
            if other is not scope:
                other.taint_run(f'it used the scope of {scope.schema!r}')

    @contextmanager
    def running(self, scope: AmbientScope) -> Iterator[None]:
        """Note that a creator runs in a scope while the block runs."""
        running = self._here.running
        running.append(scope)
        try:
            yield
        finally:
            running.remove(scope)

    def enter(self, schema: str, session: Session | None = None) -> AmbientScope:
        """Work for a tenant from now on, in this thread.

        :param session: the host's session, if it has no registry of sessions.
        :raises InvalidSchemaError: if no tenant can have this name.
        :raises ConfigurationError: if nobody observes the session, or the host itself says that
            it works for another tenant.
        """
        self._here.entered = self.observer.check_schema(schema)
        scope = self.present()
        if scope is None or scope.schema != schema:
            raise ConfigurationError(
                f'enter_scope({schema!r}): the host works for {self.present_schema()!r}; switch '
                'its own schema first'
            )
        if session is not None:
            scope.entered_session = observed(session)
        return scope

    @contextmanager
    def entered(self, schema: str) -> Iterator[AmbientScope]:
        """Work for a tenant while the block runs, and then for the one before; its end ends the
        snapshots."""
        before = self._here.entered
        try:
            yield self.enter(schema)
        finally:
            self._here.entered = before
            self.unit_ended()

    def begin_request(self) -> None:
        """Begin a request in this thread: forget all values of the one before."""
        self.unit_ended()
        for scope in self._here.scopes.values():
            scope.begin_request()
        self._drop_idle()

    def unit_ended(self) -> None:
        """End the snapshots of this thread, but for those of transactions that are open."""
        for scope in list(self._here.scopes.values()):
            scope.unit_ended()

    def _drop_idle(self) -> None:
        present = self._here.scopes.get(self.present_schema() or NOWHERE)
        for schema, scope in list(self._here.scopes.items()):
            if scope is not present and not scope.transactions and not scope.runs:
                del self._here.scopes[schema]

    # sessions

    def session(self, scope: AmbientScope) -> TenantSession:
        """Return the host's session of a scope.

        :raises ConfigurationError: if there is none, or nobody observes it.
        """
        if scope.entered_session is not None:
            return scope.entered_session
        if self._session is None:
            raise ConfigurationError(
                f'{scope.schema}: the session is not known, because the host has no '
                'scoped_session; give it: enter_scope(schema, session=...)'
            )
        self.check_present(scope)
        session: TenantSession = observed(self._session())
        registry = self.observer.registry
        if registry is not None:
            self._uses_registry = registry.registry.has() and registry() is session
        return session

    def registry_of(self, scope: AmbientScope) -> scoped_session[Any] | None:
        """Return the registry that has the host's session of a scope; None if the host keeps it
        elsewhere."""
        registry = self.observer.registry
        if registry is None or self._session is registry:
            return registry
        if self._uses_registry is None and self.present_schema() == scope.schema:
            self.session(scope)  # tells
        return None if self._uses_registry is False else registry

    def existing_session(self, scope: AmbientScope) -> ScopedSession | None:
        """Return the host's session of a scope, if there is one already."""
        if scope.entered_session is not None:
            return scope.entered_session
        if self._find_session is None or self.registry_of(scope) is None:
            # nobody but the host knows whether it has one
            is_known = self._session is not None and self.present_schema() == scope.schema
            return self.session(scope) if is_known else None
        session: ScopedSession | None = self._find_session()
        return None if session is None else observed(session)

    def check_present(self, scope: AmbientScope) -> None:
        """Raise an error if the host works for another tenant than a scope's.

        :raises ConfigurationError: then.
        """
        present = self.present_schema()
        if present != scope.schema:
            raise ConfigurationError(
                f'A value of {scope.schema!r} is read while the host works for {present!r}; '
                'switch back before'
            )


#: The ambient scopes of all caches of this process.
_ALL: WeakSet[AmbientScopes] = WeakSet()


def scopes_of(instance: object) -> AmbientScopes | None:
    """Return the ambient scopes of the cache that an object's properties belong to.

    :return: None if there is no such cache, or if it has no host.
    """
    for scopes in list(_ALL):
        if not scopes.is_closed and scopes.cache.is_cache_of(instance):
            return scopes
    return None


def is_any_open() -> bool:
    """Return whether the process has a cache of a host."""
    return any(not scopes.is_closed for scopes in list(_ALL))
