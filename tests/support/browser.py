"""A real browser, for tests of pages: Chromium without a window, driven by Playwright.

Playwright's own browsers come from a server that is no package registry, so the system's Chromium
is used: the program that ``ORMCACHE_TEST_CHROMIUM`` names, or one of :data:`PROGRAMS` in the path.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.server import create_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: Names the program.
VARIABLE = 'ORMCACHE_TEST_CHROMIUM'

#: What Chromium is called, by those who package it.
PROGRAMS = (
    'chromium-headless-shell', 'chromium', 'chromium-browser', 'google-chrome', 'chrome',
)  # fmt: skip

#: Why a test that needs a browser is skipped.
MISSING = f'There is no Chromium: apt-get install chromium, or name its program by {VARIABLE}'


def find_program() -> str | None:
    """Return the path of Chromium; None if there is none."""
    if named := os.environ.get(VARIABLE):
        return named
    return next(filter(None, map(shutil.which, PROGRAMS)), None)


@contextmanager
def chromium(program: str) -> Iterator[Browser]:
    """Start a browser, and end it after the block.

    :param program: what :func:`find_program` has found.
    """
    from playwright.sync_api import sync_playwright

    # the sandbox refuses to work for root, and all pages are our own
    options = ['--no-sandbox'] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=options)
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def served(application: Any) -> Iterator[str]:
    """Serve a WSGI application on a free port of this machine while a block runs.

    :return: its URL, without a slash at the end.
    """
    sockets: dict[int, Any] = {}
    server: Any = create_server(application, map=sockets, host='127.0.0.1', port=0, threads=4)
    stopping = Event()

    def serve() -> None:
        while not stopping.is_set():
            wasyncore.loop(map=sockets, count=1)

    thread = Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.effective_port}'
    finally:
        stopping.set()
        server.pull_trigger()
        thread.join(30)
        server.task_dispatcher.shutdown()
        wasyncore.close_all(sockets)
