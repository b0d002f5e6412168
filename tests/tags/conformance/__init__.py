"""The suite of tests that every tag store must pass: inherit it and give it the store.

Made in the manner of dogpile.cache's back-end suites, so that a store of another
kind can be held to the same promises::

    class TestMyTagStore(TagStoreConformance):
        @pytest.fixture
        def store(self) -> MyTagStore: ...

        @pytest.fixture
        def other(self, store: MyTagStore) -> MyTagStore: ...  # a second client of it

        def fill(self, store: MyTagStore, schema: str, stamp: Stamp) -> bool: ...

A tenant's birth is its first use; in the store under test it must not begin a quarantine.
"""

from __future__ import annotations

from tests.tags.conformance.doubts import Doubts
from tests.tags.conformance.fills import Fills
from tests.tags.conformance.identities import ONE, TWO, Identities, found
from tests.tags.conformance.store_under_test import (
    FILES,
    MENU,
    PAGES,
    TREE,
    USERS,
    put_in_doubt,
)
from tests.tags.conformance.tenants import Tenants
from tests.tags.conformance.versions import Versions

__all__ = [
    'FILES',
    'MENU',
    'ONE',
    'PAGES',
    'TREE',
    'TWO',
    'USERS',
    'TagStoreConformance',
    'found',
    'put_in_doubt',
]


class TagStoreConformance(Versions, Doubts, Fills, Tenants, Identities):
    """Inherit this class, and provide `store`, `other` and `fill` as shown above."""
