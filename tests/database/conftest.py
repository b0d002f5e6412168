"""The databases under test, one after the other."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(params=['sqlite', 'postgresql'])
def dsn(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Each database in turn."""
    if request.param == 'sqlite':
        return f'sqlite:///{tmp_path}/tenants'
    found: str = request.getfixturevalue('postgres_dsn')
    return found
