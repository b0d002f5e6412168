"""A serializer that knows the classes of serializable.py."""

from __future__ import annotations

import pytest

from onegov_ormcache.tiers.serializer import Serializer
from tests.tiers.serializable import TYPES


@pytest.fixture
def serializer() -> Serializer:
    return Serializer(TYPES)
