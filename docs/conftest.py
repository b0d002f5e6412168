"""Runs the examples of the documentation, each page in an empty folder of its own.

A page's examples run in order and share their names, as if they were one file.
The embedded default keeps its tenants in the working directory, so the folder is
all that they need.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, chdir
from doctest import ELLIPSIS
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any
from uuid import uuid4

import pytest
from sybil import Sybil
from sybil.parsers.rest import DocTestParser, PythonCodeBlockParser

from onegov_ormcache import OrmCache, OrmCacheApp, OrmCacheMiddleware
from tests.support.servers import drop_schemas

_STACK = '_docs_stack'

#: The name of the module that a page's examples seem to stand in.
MODULE = 'example'


def begin_page(namespace: dict[str, Any]) -> None:
    """Give the page a folder, and a module that is not ``__main__``, which Pyramid looks up."""
    stack = namespace[_STACK] = ExitStack()
    stack.enter_context(chdir(stack.enter_context(TemporaryDirectory())))
    namespace['__name__'] = MODULE
    sys.modules[MODULE] = ModuleType(MODULE)
    stack.callback(sys.modules.pop, MODULE)


def end_page(namespace: dict[str, Any]) -> None:
    """Close the page's applications, and remove its folder."""
    with namespace.pop(_STACK):
        for value in namespace.values():
            app = value.app if isinstance(value, OrmCacheMiddleware) else value
            if isinstance(app, OrmCacheApp):
                app.close_orm_cache()
            elif isinstance(app, OrmCache):
                app.close()


@pytest.fixture(scope='session')
def dsn(postgres_dsn: str) -> str:
    """The PostgreSQL server of a page that needs one."""
    return postgres_dsn


@pytest.fixture(scope='session')
def namespace(dsn: str) -> Iterator[str]:
    """The begin of the names of a page's tenants, the same for all its examples."""
    name = f'docs{uuid4().hex[:12]}'
    yield name
    drop_schemas(dsn, name)


#: The pages whose examples run on PostgreSQL and Redis; they use the names of these fixtures.
ON_SERVERS = ['coming_from_onegov_core.rst']

EXAMPLES: dict[str, Any] = {
    'parsers': [DocTestParser(ELLIPSIS), PythonCodeBlockParser()],
    'setup': begin_page,
    'teardown': end_page,
}

pytest_collect_file = (
    Sybil(pattern='*.rst', excludes=ON_SERVERS, **EXAMPLES)
    + Sybil(patterns=ON_SERVERS, fixtures=['dsn', 'redis_url', 'namespace'], **EXAMPLES)
).pytest()
