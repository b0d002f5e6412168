"""Two processes that serve towns on the framework, and the truth without a cache beside them."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode
from uuid import uuid4

import transaction

from fixtures.framework import changes, data, views  # noqa: F401 (they register the views)
from fixtures.framework.town import Town
from fixtures.framework.views import APP_PROPERTIES, plain


class Process:
    """A process that serves towns.

    :param settings: of the application.
    """

    def __init__(self, settings: dict[str, Any]) -> None:
        command = [sys.executable, '-m', 'fixtures.framework.serving', json.dumps(settings)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self._url = f'http://127.0.0.1:{int(self._process.stdout.readline())}'

    def get(self, path: str, **headers: str) -> Any:
        """The answer to a GET, as JSON."""
        return self._ask(urllib.request.Request(f'{self._url}/{path}', headers=headers))

    def post(self, path: str, **form: Any) -> Any:
        """The answer to a POST, as JSON."""
        body = urlencode(form).encode()
        return self._ask(urllib.request.Request(f'{self._url}/{path}', body, method='POST'))

    def delete(self, path: str) -> Any:
        """The answer to a DELETE, as JSON."""
        return self._ask(urllib.request.Request(f'{self._url}/{path}', method='DELETE'))

    def _ask(self, request: urllib.request.Request) -> Any:
        with urllib.request.urlopen(request, timeout=60) as response:
            return json.load(response)

    def end(self) -> None:
        self._process.terminate()
        self._process.communicate(timeout=30)


class Towns:
    """Towns that two processes serve.

    :param settings: of all processes.
    """

    def __init__(self, settings: dict[str, Any], names: tuple[str, ...]) -> None:
        self.namespace = settings['namespace']
        self._truth = Town()
        # with a part of Redis of its own, it shares no value with the processes
        apart = {'orm_cache': {'namespace': f'truth-{uuid4().hex[:8]}', 'audit': 'off'}}
        self._truth.configure_application(**settings, **apart)
        for name in names:
            data.load(self._truth, name)
        self.processes = [Process(settings), Process(settings)]

    def path(self, town: str, rest: str = '') -> str:
        """The path of a town's page."""
        return f'{self.namespace}/{town}/{rest}'

    def truth(self, town: str) -> Any:
        """What the properties of the application give if they are computed now."""
        app = self._truth
        app.set_application_id(f'{self.namespace}/{town}')
        app.clear_request_cache()
        transaction.begin()
        try:
            app.session().connection()
            app.orm_cache.tags.renew(app.schema)
            app.orm_cache.unit_ended()
            found = {name: plain(getattr(app, name)) for name in APP_PROPERTIES}
        finally:
            transaction.abort()
            app.session_manager.release_sessions()
        return json.loads(json.dumps(found))

    def close(self) -> None:
        for process in self.processes:
            process.end()
        self._truth.close()


@contextmanager
def served(dsn: str, redis_url: str, *names: str, **cfg: Any) -> Iterator[Towns]:
    """Serve towns of these names by two processes while the block runs."""
    settings = {'dsn': dsn, 'redis_url': redis_url, 'namespace': f't{uuid4().hex[:10]}', **cfg}
    towns = Towns(settings, names)
    try:
        yield towns
    finally:
        towns.close()
