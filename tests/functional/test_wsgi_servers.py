"""The application behind real WSGI servers: threads in one process, and several processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from time import sleep
from typing import Any

import pytest
from sqlalchemy import text, update
from waitress import wasyncore
from waitress.server import create_server

from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, orm_cached
from tests.support.applications import Applications, change
from tests.support.models import Base, User
from tests.support.outside import install, outside, until
from tests.support.servers import PostgresServer


class Root:
    """The model at /."""


class App(OrmCacheApp):
    """Answers with the users' names, and adds some."""

    @orm_cached(policy='on-table-change:users')
    def names(self) -> Any:
        return self.session().query(User.name).order_by(User.name)


App.path(path='')(Root)


@App.view(model=Root)
def read(self: Root, request: Any) -> str:
    return f'{os.getpid()} ' + ','.join(row.name for row in request.app.names)


@App.view(model=Root, request_method='POST')
def add(self: Root, request: Any) -> str:
    request.app.session().add(User(name=request.params['name']))
    return ''


@App.view(model=Root, name='stream')
def stream(self: Root, request: Any) -> Any:
    response = request.ResponseClass()

    def body() -> Iterator[bytes]:
        for row in request.app.names:
            yield row.name.encode() + b'\n'

    response.app_iter = body()
    return response


@App.view(model=Root, name='lose')
def lose(self: Root, request: Any) -> str:
    """End the connection of its own request, after a change."""
    session = request.app.session()
    session.add(User(name='lost'))
    session.flush()
    return str(session.scalar(text('SELECT pg_terminate_backend(pg_backend_pid())')))


#: More than the sockets and the buffers of a server hold.
PADDING = b'.' * 2**25 + b'\n'


@App.view(model=Root, name='slow')
def slow(self: Root, request: Any) -> Any:
    response = request.ResponseClass()
    app = request.app

    def body() -> Iterator[bytes]:
        yield f'{len(app.names)}\n'.encode()
        # a server takes one more chunk than its buffers hold
        yield PADDING
        yield PADDING
        yield f'{app.session().query(User).count()} {len(app.names)}\n'.encode()

    response.app_iter = body()
    return response


@App.view(model=Root, name='row')
def row(self: Root, request: Any) -> str:
    """Change one row, and wait for another request before the commit."""
    app = request.app
    app.session().execute(update(User).where(User.name == 'n000').values(name=User.name))
    app.session().flush()
    for _ in range(5):
        sleep(0.001)  # a green thread lets others run
    return str(os.getpid())


def get(url: str) -> str:
    with urllib.request.urlopen(url, timeout=30) as response:
        return str(response.read().decode())


def post(url: str, name: str) -> None:
    with urllib.request.urlopen(url, data=f'name={name}'.encode(), timeout=30) as response:
        assert response.status == 200


@contextmanager
def served_by_waitress(application: Any, threads: int, **options: Any) -> Iterator[str]:
    sockets: dict[int, Any] = {}
    server: Any = create_server(
        application, map=sockets, host='127.0.0.1', port=0, threads=threads, **options
    )
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.is_set():
            wasyncore.loop(map=sockets, count=1)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f'http://127.0.0.1:{server.effective_port}'
    finally:
        # the sockets, the one that wakes the loop among them, are closed when nobody is left
        # who uses them
        stopping.set()
        server.pull_trigger()
        thread.join(30)
        server.task_dispatcher.shutdown()
        wasyncore.close_all(sockets)


def test_waitress_threads(applications: Applications, tenant: str) -> None:
    """Each of many readers, in threads, sees every change that was answered before it asked."""
    app = applications.start(App)
    change(app, tenant, User(name='first'))
    with served_by_waitress(OrmCacheMiddleware(app, schema=tenant), threads=4) as url:
        readers = ThreadPoolExecutor(4)
        for number in range(15):
            post(url, f'n{number:02}')
            answers = set(readers.map(get, [url] * 4))
            names = ','.join(['first', *(f'n{n:02}' for n in range(number + 1))])
            assert answers == {f'{os.getpid()} {names}'}
        assert get(f'{url}/stream').split() == names.split(',')
        readers.shutdown()


def test_threads_go_on_after_a_fault(on_servers: Applications, tenant: str) -> None:
    """If PostgreSQL ends all connections, the requests in progress fail, and each thread answers
    the next one, with what was committed."""
    with PostgresServer() as server:
        app = on_servers.start(App, dsn=server.dsn)
        change(app, tenant, User(name='first'))
        names = ['first']
        with served_by_waitress(OrmCacheMiddleware(app, schema=tenant), threads=2) as url:
            for number in range(4):
                with pytest.raises(urllib.error.HTTPError, match='500'):
                    get(f'{url}/lose')
                assert get(url) == f'{os.getpid()} {",".join(names)}'
                server.terminate_backends()
                names.append(f'n{number}')
                post(url, names[-1])
                assert get(url) == f'{os.getpid()} {",".join(names)}'


@pytest.mark.parametrize('level', ['REPEATABLE READ', 'SERIALIZABLE'])
def test_change_while_a_client_is_slow(
    on_servers: Applications, tenant: str, level: str
) -> None:
    """A response that a change overtakes is sent to its end, and shows one moment."""
    app = on_servers.start(App, engine_options={'isolation_level': level})
    change(app, tenant, User(name='first'))
    application = OrmCacheMiddleware(app, schema=tenant)
    with served_by_waitress(application, threads=2, outbuf_high_watermark=1) as url:
        assert len(get(url).split(',')) == 1  # caches the names
        with urllib.request.urlopen(f'{url}/slow', timeout=30) as response:
            assert response.readline() == b'1\n'
            post(url, 'second')  # while the server waits for this client
            assert response.readline() == PADDING
            assert response.readline() == PADDING
            assert response.readline() == b'1 1\n'
            assert response.read() == b''
        assert get(url).endswith(' first,second')


@contextmanager
def served_by(
    command: Callable[[str], list[str]], environment: dict[str, str]
) -> Iterator[tuple[str, Any]]:
    """A server on a socket that is bound here, so that the port is known and nobody waits.

    :param command: returns the command that starts it, for the name of the socket.
    """
    with socket.socket() as listener:
        listener.bind(('127.0.0.1', 0))
        listener.listen(64)
        server = subprocess.Popen(
            command(f'fd://{listener.fileno()}'),
            env={**os.environ, **environment},
            pass_fds=[listener.fileno()],
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            yield f'http://127.0.0.1:{listener.getsockname()[1]}', server
        finally:
            if server.poll() is None:
                server.send_signal(signal.SIGTERM)
            server.communicate(timeout=60)


def served_by_gunicorn(environment: dict[str, str], *options: str) -> Any:
    def command(bind: str) -> list[str]:
        gunicorn = [sys.executable, '-m', 'gunicorn', '--bind', bind]
        return [*gunicorn, *options, 'tests.functional.test_wsgi_servers:make()']

    return served_by(command, environment)


def served_by_uwsgi(environment: dict[str, str], *options: str) -> Any:
    """uWSGI, which forks without a word to Python, as it does by default."""

    def command(bind: str) -> list[str]:
        uwsgi = [str(Path(sys.executable).with_name('uwsgi')), '--http-socket', bind]
        own = ['--master', '--die-on-term', '--need-app', '--disable-logging']
        module = ['--module', 'tests.functional.test_wsgi_servers:make()']
        return [*uwsgi, *own, *options, '--pythonpath', os.getcwd(), *module]

    return served_by(command, environment)


def make() -> Any:
    """The application that a gunicorn worker serves."""
    chosen = {'base': Base, 'dsn': os.environ['TEST_DSN'], 'namespace': os.environ['TEST_NAME']}
    chosen['redis_url'] = os.environ.get('TEST_REDIS')
    chosen['listen'] = 'TEST_LISTEN' in os.environ
    App.setting_section(section='orm_cache')(lambda: chosen)
    tenant = os.environ['TEST_TENANT']
    application = OrmCacheMiddleware(App(), schema=tenant)
    with application.app.request_scope(tenant):
        application.app.names  # so that a server which forks now has a connection in its pool
    return application


def check_greenlets(url: str) -> None:
    """Check that requests which wait for one another's row are all answered."""
    with ThreadPoolExecutor(8) as readers:
        assert len(list(readers.map(get, [f'{url}/row'] * 40))) == 40


def environment_of(applications: Applications, tenant: str) -> dict[str, str]:
    """The environment in which :func:`make` finds the servers and the tenant."""
    settings = applications.backend.settings
    return {
        'TEST_DSN': settings['dsn'],
        'TEST_REDIS': settings['redis_url'],
        'TEST_NAME': settings['namespace'],
        'TEST_TENANT': tenant,
    }


def check_processes(url: str, processes: int) -> None:
    """Check that each of many answers is that of its own question, and has all changes that were
    answered before it.

    :param processes: the number of processes that must have answered at the end.
    """
    with ThreadPoolExecutor(6) as readers:
        names: list[str] = []
        seen: set[str] = set()
        # the first worker may answer for a while before there is another
        while len(names) < 15 or len(seen) < processes:
            assert len(names) < 300, f'only {len(seen)} processes have answered'
            names.append(f'n{len(names):03}')
            post(url, names[-1])
            words = [f'{names[-1]}-{number}' for number in range(24)]
            echoes = readers.map(get, [f'{url}/echo?word={word}' for word in words])
            answers = readers.map(get, [url] * 12)
            assert [echo.split()[1] for echo in echoes] == words
            for answer in answers:
                process, _, read = answer.partition(' ')
                seen.add(process)
                assert read == ','.join(names)


@pytest.mark.parametrize('preload', [False, True])
def test_gunicorn_processes(on_servers: Applications, tenant: str, preload: bool) -> None:
    """Each of several processes sees every change that was answered before it was asked,
    also if they were forked from one that had set the application up."""
    options = ['--workers', '3', '--threads', '2', *(['--preload'] if preload else [])]
    with served_by_gunicorn(environment_of(on_servers, tenant), *options) as (url, _):
        check_processes(url, 2)


@pytest.mark.parametrize('threads', [1, 2])
def test_uwsgi_processes(on_servers: Applications, tenant: str, threads: int) -> None:
    """uWSGI's processes use no connection of the one that has loaded the application, although it
    forks without Python's knowledge."""
    options = ['--processes', '3', '--threads', str(threads)]
    with served_by_uwsgi(environment_of(on_servers, tenant), *options) as (url, _):
        check_processes(url, 3)


@pytest.mark.parametrize('preload', [False, True])
def test_gevent_workers(on_servers: Applications, tenant: str, preload: bool) -> None:
    """The same holds for green threads, also if the application was made before gevent has
    patched the standard library; a request that waits for a row does not stop the others."""
    options = ['-k', 'gevent', '--workers', '2', *(['--preload'] if preload else [])]
    with served_by_gunicorn(environment_of(on_servers, tenant), *options) as (url, _):
        check_processes(url, 2)
        check_greenlets(url)


@pytest.mark.parametrize('preload', [False, True])
def test_gevent_workers_listen(
    on_servers: Applications, tenant: str, postgres_dsn: str, preload: bool
) -> None:
    """Green threads hear changes from outside, also if they were forked from a process that
    listened with a thread."""
    app = on_servers.start(App)
    change(app, tenant, User(name='Ada'))
    app.close_orm_cache()
    install(postgres_dsn, tenant)
    environment = {**environment_of(on_servers, tenant), 'TEST_LISTEN': 'yes'}
    options = ['-k', 'gevent', *(['--preload'] if preload else [])]
    with (
        served_by_gunicorn(environment, *options) as (url, _),
        outside(postgres_dsn, tenant) as program,
    ):
        for name in 'Bob', 'Cyd':
            assert get(url).endswith('Ada' if name == 'Bob' else 'Bob')
            program.execute('UPDATE users SET name = %s', [name])
            until(partial(lambda name: get(url).endswith(name), name), 30)


def test_gunicorn_refuses_several_processes_without_redis(
    embedded: Applications, tenant: str
) -> None:
    """On the embedded default a second worker fails at its start, with the reason."""
    settings = embedded.backend.settings
    environment = {
        'TEST_DSN': settings['dsn'],
        'TEST_NAME': settings['namespace'],
        'TEST_TENANT': tenant,
    }
    with served_by_gunicorn(environment, '--workers', '2') as (_, server):
        log = ''
        for line in server.stderr:
            log += line
            if 'SecondProcessError: ' in line:
                break
    assert 'set redis_url' in log


@App.view(model=Root, name='echo')
def echo(self: Root, request: Any) -> str:
    word = request.params['word']
    return f"{os.getpid()} {request.app.session().scalar(text('SELECT :word'), {'word': word})}"
