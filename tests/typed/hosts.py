"""Hosts that replace attributes of the app class: on an instance, on the class, by a property."""

from __future__ import annotations

from collections.abc import MutableMapping
from typing import Any, assert_type

from sqlalchemy.orm import Session

from onegov_ormcache import OrmCacheApp, SessionManager
from onegov_ormcache.database.hosts import HostObserver


class OnTheInstance(OrmCacheApp):
    def __init__(self, observer: HostObserver, manager: SessionManager) -> None:
        self.schema = 'main'
        self.observer = observer
        self.session_manager = manager
        self.request_cache = {}


class OnTheClass(OrmCacheApp):
    schema = 'main'
    observer = None
    orm_cache_settings = {'redis_url': None}


class ByAProperty(OrmCacheApp):
    @property
    def schema(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return 'main'


class ByAMethod(OrmCacheApp):
    def session(self) -> Session:  # pyright: ignore[reportIncompatibleVariableOverride]
        return Session()


def values(app: OrmCacheApp, by_method: ByAMethod) -> None:
    assert_type(app.schema, str)
    assert_type(app.session(), Session)
    assert_type(app.session_manager, SessionManager)
    assert_type(app.observer, HostObserver | None)
    assert_type(app.request_cache, MutableMapping[Any, Any])
    assert_type(by_method.session(), Session)
    app.schema = 3  # type: ignore[assignment]  # pyright: ignore[reportAttributeAccessIssue]
