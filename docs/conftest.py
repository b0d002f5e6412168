"""Runs the examples of the documentation, each page in an empty folder of its own.

A page's examples run in order and share their names, as if they were one file.
The embedded default keeps its tenants in the working directory, so the folder is
all that they need.
"""

from __future__ import annotations

from contextlib import ExitStack, chdir
from doctest import ELLIPSIS
from tempfile import TemporaryDirectory
from typing import Any

from sybil import Sybil
from sybil.parsers.rest import DocTestParser, PythonCodeBlockParser

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware

_STACK = '_docs_stack'


def begin_page(namespace: dict[str, Any]) -> None:
    """Give the page a folder, and a module name that is not ``__main__``."""
    stack = namespace[_STACK] = ExitStack()
    stack.enter_context(chdir(stack.enter_context(TemporaryDirectory())))
    namespace['__name__'] = 'example'


def end_page(namespace: dict[str, Any]) -> None:
    """Close the page's applications, and remove its folder."""
    with namespace.pop(_STACK):
        for value in namespace.values():
            app = value.app if isinstance(value, OrmCacheMiddleware) else value
            if isinstance(app, OrmCacheApp):
                app.close_orm_cache()


pytest_collect_file = Sybil(
    parsers=[DocTestParser(ELLIPSIS), PythonCodeBlockParser()],
    pattern='*.rst',
    setup=begin_page,
    teardown=end_page,
).pytest()
