"""The core serves any program that uses SQLAlchemy, also if Morepath is not installed."""

from __future__ import annotations

import json
import os
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.support.backends import Backend
from tests.support.environments import make_environment

ROOT = Path(__file__).parents[2]

#: Packages that the web layer needs and the core does not.
ABSENT = ('morepath', 'dectate', 'reg', 'webob', 'webtest', 'waitress')


@pytest.fixture(scope='module')
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with a plain install and the extra `postgres`."""
    folder = tmp_path_factory.mktemp('environment')
    package = ROOT / 'onegov_ormcache'
    return make_environment(folder, 'onegov_ormcache', frozenset({'postgres'}), package)


def command(python: Path, *arguments: str) -> dict[str, Any]:
    """Return the arguments of `subprocess.run` that start Python in the repository's root."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith('PYTHON')}
    return {'args': [str(python), *arguments], 'cwd': ROOT, 'env': environment, 'text': True}


def output(python: Path, *arguments: str) -> str:
    """Run Python with these arguments, and return what it prints."""
    done = subprocess.run(**command(python, *arguments), capture_output=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_there_is_no_morepath(python: Path) -> None:
    """The environment of these tests has none of the packages that only the web layer needs."""
    code = f'from importlib.util import find_spec; print([n for n in {ABSENT} if find_spec(n)])'
    assert output(python, '-c', code).strip() == '[]'


def test_names_that_need_morepath_say_so(python: Path) -> None:
    """The package can be imported; a name of the web layer says which extra it needs."""
    code = """
import onegov_ormcache
from onegov_ormcache.errors import OrmCacheError
try:
    from onegov_ormcache import OrmCacheApp
except OrmCacheError as error:
    print(isinstance(error, ImportError), error)
print(hasattr(onegov_ormcache, 'nothing'))
"""
    needs = 'OrmCacheApp needs morepath: python -m pip install "onegov_ormcache[morepath]"'
    assert output(python, '-c', code).splitlines() == [f'True {needs}', 'False']


def test_script(python: Path, backend: Backend, tenant: str) -> None:
    """A script reads values and its own changes; a change that it does not commit is gone."""
    settings = json.dumps(backend.settings)
    result = json.loads(output(python, '-m', 'fixtures.library', 'script', settings, tenant))
    empty = {'titles': [], 'by_author': {}, 'latest': None}
    one = {'titles': ['Emma'], 'by_author': {'Austen': 1}, 'latest': 'Emma'}
    two = {
        'titles': ['Emma', 'Persuasion'],
        'by_author': {'Austen': 2},
        'latest': 'Persuasion',
    }
    # what was request-cached before the first change stays as long as its scope
    assert result['seen'] == [empty, {**one, 'latest': None}, two, one, one]
    # at first, with own changes in both scopes, and after them; `latest` in each scope
    assert result['runs'] == {'titles': 4, 'books_by_author': 4, 'latest': 4}


@contextmanager
def served(python: Path, backend: Backend, tenant: str) -> Iterator[str]:
    """Serve the WSGI callable in a process of its own, and yield its URL."""
    settings = json.dumps(backend.settings)
    arguments = ('-m', 'fixtures.library', 'serve', settings, tenant)
    server = subprocess.Popen(**command(python, *arguments), stdout=subprocess.PIPE)
    try:
        assert server.stdout is not None
        yield f'http://127.0.0.1:{int(server.stdout.readline())}'
    finally:
        server.terminate()
        server.communicate(timeout=30)


def ask(url: str, **form: str) -> Any:
    """Return the answer to a GET, or to a POST if a form is given."""
    data = urlencode(form).encode() if form else None
    with urllib.request.urlopen(url, data, timeout=30) as response:
        return json.load(response)


def test_wsgi_callable(python: Path, backend: Backend, tenant: str) -> None:
    """A WSGI callable without a framework serves several threads, and on servers several
    processes: each request sees the commits before it, whichever process serves it."""
    with ExitStack() as stack:
        number = 1 if backend.name == 'embedded' else 2
        urls = [stack.enter_context(served(python, backend, tenant)) for _ in range(number)]
        for count in range(1, 6):
            for url in urls:
                title = f'{count} {url}'
                ask(f'{url}/{tenant}', title=title, author='Austen')
                with ThreadPoolExecutor(4) as pool:
                    answers = list(pool.map(ask, [f'{u}/{tenant}' for u in urls * 4]))
                for answer in answers:
                    assert answer['latest'] == title
                    assert title in answer['titles']
                    assert answer['by_author'] == {'Austen': len(answer['titles'])}


def test_wsgi_callable_creates_no_tenant(python: Path, backend: Backend, tenant: str) -> None:
    """A tenant that a request names and the database does not have is not created."""
    with served(python, backend, tenant) as url:
        for name in (f'{tenant}_typo', '..%2Fhostile', ''):
            for method in (ask, partial(ask, title='a', author='b')):
                with pytest.raises(urllib.error.HTTPError) as caught:
                    method(f'{url}/{name}')
                assert caught.value.code == 404
        assert ask(f'{url}/{tenant}')['titles'] == []
