"""The application that the soak's processes serve, which tells of each answer what it has cost."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import Engine, event

from fixtures.townhall import make_application

#: The headers of an answer: the process that has made it, and its number of SQL statements.
PROCESS, STATEMENTS = 'X-Process', 'X-Statements'

#: The header of an answer to a request that has failed: the name of the error.
ERROR = 'X-Error'

log = logging.getLogger('soak')

_counted = threading.local()


@event.listens_for(Engine, 'before_cursor_execute')
def _count(*arguments: Any) -> None:
    _counted.statements = getattr(_counted, 'statements', 0) + 1


def make() -> Callable[..., Iterable[bytes]]:
    """The application, made in the process that serves it."""
    application = make_application(
        {
            'dsn': os.environ['TOWNHALL_DSN'],
            'redis_url': os.environ['TOWNHALL_REDIS_URL'],
            'namespace': os.environ['TOWNHALL_NAMESPACE'],
            'on_outage': os.environ.get('SOAK_ON_OUTAGE') or None,
            'redis_timeout': float(os.environ['SOAK_REDIS_TIMEOUT']),
        }
    )

    def counted(environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        _counted.statements = 0

        def start(status: str, headers: list[tuple[str, str]], *rest: Any) -> Any:
            headers = [
                *headers,
                (PROCESS, str(os.getpid())),
                (STATEMENTS, str(_counted.statements)),
            ]
            return start_response(status, headers, *rest)

        try:
            return application(environ, start)
        except Exception as error:
            log.exception('%s', environ.get('PATH_INFO'))
            start_response('500 Internal Server Error', [(ERROR, type(error).__name__)])
            return []

    return counted
