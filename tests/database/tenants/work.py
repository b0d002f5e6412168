"""Adds an item to a tenant, and starts processes that work on it."""

from __future__ import annotations

import multiprocessing

from onegov_ormcache.database.session_manager import SessionManager
from tests.database.fakes import Item, open_scope

spawn = multiprocessing.get_context('spawn')


def add(manager: SessionManager, schema: str, name: str) -> None:
    with open_scope(manager, schema) as scope:
        scope.session().add(Item(name=name))
        scope.session().commit()
