"""The store that the suite tests, and the tags and the doubts that its tests use."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any
from uuid import uuid4

import pytest

from onegov_ormcache.tags.snapshot import Stamp, TagStore

USERS, PAGES, FILES = 'table:users', 'table:pages', 'table:files'
TREE, MENU = 'property:town.App.tree', 'property:town.App.menu'


def put_in_doubt(
    store: TagStore,
    schema: str,
    writer: str,
    *tags: str,
    known: Collection[str] = (),
    transaction_key: str = '',
    read: Stamp | None = None,
    computed: Stamp | None = None,
) -> frozenset[str]:
    answer = store.doubt(
        schema, writer, tags, known, transaction_key, read or {}, computed or {}
    )
    return answer.result()


def publish_at_once(store: TagStore, schema: str, writer: str, tags: Collection[str]) -> None:
    """Publish, and wait until it is done, so that a second client sees it."""
    store.publish(schema, writer, tags)
    store.unidentified(schema)  # by the same connection, which has answered the first command


class StoreUnderTest:
    """Its fixtures and its `fill` are given by the class that inherits the suite."""

    @pytest.fixture
    def store(self) -> Any:
        """The store under test, empty or with other tenants in it."""
        raise NotImplementedError

    @pytest.fixture
    def other(self, store: Any) -> Any:
        """A second client of the same store; the same one if it can have only one."""
        raise NotImplementedError

    @pytest.fixture
    def schema(self) -> str:
        """A tenant that the store has never heard of."""
        return f'tenant-{uuid4().hex[:12]}'

    @pytest.fixture
    def stranger(self) -> str:
        """A second such tenant."""
        return f'stranger-{uuid4().hex[:12]}'

    def fill(self, store: Any, schema: str, stamp: Stamp) -> bool:
        """Store any value with this stamp; whether the store allowed it."""
        raise NotImplementedError
