"""The Django packages as contestants: their environment, and a process for each.

The environment is made once under the output folder, with pip's own settings. If that
fails, the reason stands in the tables in the place of the numbers.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cached_property
from pathlib import Path
from typing import Any

from sqlalchemy.engine import make_url

from . import schema as tables

HERE = Path(__file__).parent
REQUIREMENTS = HERE / 'peers-requirements.txt'
#: Kind, and the name in tables.
KINDS = {
    'django': 'Django, no cache',
    'cachalot': 'django-cachalot',
    'cacheops': 'django-cacheops',
}
INSTALL_SECONDS = 300


class PeersMissingError(Exception):
    """Why there is no environment for the Django packages."""


class Environment:
    """A virtual environment of its own, made when its Python is first asked for."""

    def __init__(self, folder: Path, interpreter: str, requirements: list[str]) -> None:
        self.folder = folder
        self.interpreter = interpreter
        self.requirements = requirements

    @cached_property
    def problem(self) -> str | None:
        """Why it can't be made; None if it is there."""
        done = self.folder / 'done'
        if done.exists():
            return None
        try:
            run([self.interpreter, '-m', 'venv', str(self.folder)])
            run([self._python, '-m', 'pip', 'install', '-q', *self.requirements])
        except (OSError, subprocess.SubprocessError) as error:
            output = getattr(error, 'stderr', None) or str(error)
            return f'no environment: {output.strip().splitlines()[-1][:80]}'
        done.touch()
        return None

    @property
    def python(self) -> str:
        """Its interpreter.

        :raises PeersMissingError: if it can't be made.
        """
        if self.problem:
            raise PeersMissingError(self.problem)
        return self._python

    @property
    def _python(self) -> str:
        return str(self.folder / 'bin' / 'python')


def run(command: list[str]) -> None:
    subprocess.run(
        command,
        check=True,
        timeout=INSTALL_SECONDS,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def peers_environment(out: Path) -> Environment:
    return Environment(out / 'peers-env', sys.executable, ['-r', str(REQUIREMENTS)])


def database_of(dsn: str) -> dict[str, Any]:
    """The SQLAlchemy URL as Django's settings."""
    url = make_url(dsn)
    host = url.query.get('host') or url.host or ''
    return {
        'NAME': url.database,
        'USER': url.username,
        'PASSWORD': url.password or '',
        'HOST': host if isinstance(host, str) else host[0],
        'PORT': url.port or '',
    }


class DjangoPeer:
    """A process with one of the packages; a contestant like the others.

    :raises PeersMissingError: if its environment can't be made, or it does not start.
    """

    base = KINDS['django']
    uncounted = 0

    def __init__(
        self, environment: Environment, kind: str, dsn: str, redis_url: str, schema: str,
        **more: Any,
    ) -> None:  # fmt: skip
        self.name = KINDS[kind]
        configuration = {
            'kind': kind,
            'database': database_of(dsn),
            'redis_url': redis_url,
            'schema': schema,
            'categories': tables.CATEGORIES,
            **more,
        }
        self._process = subprocess.Popen(
            [environment.python, str(HERE / 'django_peer.py'), json.dumps(configuration)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={name: value for name, value in os.environ.items() if name != 'PYTHONPATH'},
        )
        try:
            self._answer()
        except PeersMissingError:
            self.close()
            raise

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise PeersMissingError(f'{self.name} has ended')
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, do: str, **order: Any) -> Any:
        """Have something done; gives its result."""
        self.send(do, **order)
        return self._answer()['result']

    def send(self, do: str, **order: Any) -> None:
        """Order something; its result must be fetched with :meth:`result`."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({'do': do, **order}) + '\n')
        self._process.stdin.flush()

    def result(self) -> Any:
        return self._answer()['result']

    def sql(self, do: str, **order: Any) -> int:
        """How many SQL statements something takes."""
        self.send(do, count=True, **order)
        return int(self._answer()['sql'])

    def requests(self, properties: int, repeat: int, roles: int = 0) -> float:
        return float(self.ask('requests', properties=properties, repeat=repeat, roles=roles))

    def change(self, objects: int) -> float:
        return float(self.ask('change', objects=objects))

    def tree(self, repeat: int) -> float:
        return float(self.ask('tree', repeat=repeat))

    def forget(self) -> None:
        """It keeps nothing in its process."""

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
