"""Each view of the town hall gives every visitor the same bytes with cached responses as without.

Several processes serve the town hall. What they answer is compared with the answers of an
application without cached responses, which reads everything from the database.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from http.client import HTTPConnection
from itertools import product
from random import Random, SystemRandom
from typing import Any, NamedTuple
from urllib.parse import urlencode, urlsplit

import dectate
import pytest
from webob import Request

from fixtures.townhall import Town, Wiki, load, make_application
from onegov_ormcache import OrmCacheMiddleware
from tests.functional.test_wsgi_servers import served_by
from tests.functional.visitors import CHANGES, Change
from tests.support.backends import Backend

#: The paths that are asked for, by view. Not every tenant and role has them all.
PATHS = {
    'view_home': ('/',),
    'view_about': ('/about',),
    'view_tree': ('/tree',),
    'view_welcome': ('/welcome',),
    'view_export': ('/export',),
    # the country, a city, the intranet, the salaries and news; in Iceland
    'view_page': ('/pages/1', '/pages/5', '/pages/11', '/pages/13', '/pages/16'),
    'view_search': ('/search?words=a', '/search?words=salaries', '/search?words=a&page=0'),
    'view_documents': ('/documents',),
    'view_tickets': ('/tickets',),
    'view_my_tickets': ('/tickets/mine',),
    'view_ticket': ('/tickets/1', '/tickets/2'),
    'view_users': ('/users',),
    'view_tickets_of': ('/users/1/tickets', '/users/3/tickets'),
    'view_front': ('/wiki',),
    'view_article': ('/wiki/articles/1', '/wiki/articles/4', '/wiki/articles/5'),
}
VIEW_OF = {path: view for view, paths in PATHS.items() for path in paths}

#: The logins: none, one of each role, another one of the same role, and one that nobody has.
USERS = (None, 'member', 'editor', 'admin', 'clerk-1', 'nobody')
TENANTS = ('is', 'li')
LANGUAGES = (None, 'de', 'fr;q=0.9, de;q=0.1')
COOKIES = (None, 'session=1; language=fr')

#: What happens to both tenants between the visits, beside the changes that other tests make.
ROLES: dict[str, Change] = {
    f'{login} becomes {role}': (f'/users/{number}/role', {'role': role})
    for number, login in ((3, 'member'), (4, 'clerk-1'))
    for role in ('member', 'editor', 'admin')
}
WRITES = tuple((CHANGES | ROLES).values())

#: Headers of the package and of the server, which the application without cached responses lacks.
NOT_OWN = frozenset((
    'etag', 'cache-control', 'vary', 'cache-status', 'date', 'server', 'connection',
    'transfer-encoding',
))  # fmt: skip

PROCESSES = 3
THREADS = 4
#: The visits between two writes.
ROUND = 60
#: The writes between two rounds, at once, and the reads that go on beside them.
WRITES_AT_ONCE, READS_BESIDE = 2, 12
#: The most tags that a client says it knows.
MOST_TAGS = 20


class Visit(NamedTuple):
    """Who asks for what."""

    path: str
    user: str | None
    tenant: str
    language: str | None
    cookie: str | None

    @property
    def headers(self) -> dict[str, str]:
        named = {
            'X-Tenant': self.tenant, 'X-User': self.user, 'Accept-Language': self.language,
            'Cookie': self.cookie,
        }  # fmt: skip
        return {name: value for name, value in named.items() if value is not None}


class Answer(NamedTuple):
    """What is compared of a response: what the application has made of it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes


class Seen(NamedTuple):
    """The answer of a process, and the headers by which the package tells of its cache."""

    answer: Answer
    tag: str | None
    is_hit: bool


def own(headers: Sequence[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """The application's own headers, in one order."""
    lower = ((name.lower(), value) for name, value in headers)
    return tuple(sorted(each for each in lower if each[0] not in NOT_OWN))


def make() -> OrmCacheMiddleware:
    """The application that each process serves."""
    settings = {name: os.environ[f'TEST_{name.upper()}'] for name in ('dsn', 'redis_url')}
    name = os.environ['TEST_NAMESPACE']
    chosen = {**settings, 'namespace': name, 'cache_status': 'town', 'audit': 'error'}
    return make_application(chosen, prefix=os.environ['TEST_PREFIX'])


class Plain:
    """The same town halls, without cached responses, and with a cache of its own for the rest."""

    def __init__(self, application: OrmCacheMiddleware, prefix: str) -> None:
        self.application = application
        self.prefix = prefix

    def answers(self, visits: Sequence[Visit]) -> dict[Visit, Answer]:
        """What each visit shows, of values that were all read from the database just now."""
        for tenant in TENANTS:
            self.application.app.orm_cache.tags.renew(self.prefix + tenant)
        return {visit: self.answer(visit) for visit in visits}

    def answer(self, visit: Visit) -> Answer:
        response = Request.blank(visit.path, headers=visit.headers).get_response(self.application)
        return Answer(response.status_code, own(response.headerlist), response.body)


@pytest.fixture
def plain(servers_backend: Backend, make_tenant: Callable[[str], str]) -> Iterator[Plain]:
    """The application to compare with, whose tenants are loaded."""
    prefix = make_tenant('x')[:-1]
    namespace = f'{servers_backend.settings["namespace"]}-plain'
    settings = {**servers_backend.settings, 'namespace': namespace, 'cached_responses': False}
    application = make_application(settings, prefix=prefix)
    for tenant in TENANTS:
        assert load(application.app, prefix + tenant)
    yield Plain(application, prefix)
    application.app.close_orm_cache()


@pytest.fixture
def processes(servers_backend: Backend, plain: Plain) -> Iterator[list[str]]:
    """The addresses of several processes, each with values of its own in memory."""
    names = {**servers_backend.settings, 'prefix': plain.prefix}
    environment = {f'TEST_{name.upper()}': str(value) for name, value in names.items()}
    with ExitStack() as stack:
        servers = [served_by(command, environment) for _ in range(PROCESSES)]
        yield [urlsplit(stack.enter_context(server)[0]).netloc for server in servers]


def command(bind: str) -> list[str]:
    """How one process is started."""
    gunicorn = [sys.executable, '-m', 'gunicorn', '--bind', bind, '--threads', str(THREADS)]
    return [*gunicorn, '--log-level', 'critical', f'{__name__}:make()']


def ask(process: str, visit: Visit, tags: Sequence[str] = ()) -> Seen:
    """What a process answers to a visitor.

    :param tags: the entity tags that the visitor's browser knows.
    """
    known = {'If-None-Match': ', '.join(tags)} if tags else {}
    response, body = send(process, 'GET', visit.path, visit.headers | known)
    answer = Answer(response.status, own(response.getheaders()), body)
    is_hit = response.getheader('Cache-Status') == 'town; hit'
    return Seen(answer, response.getheader('ETag'), is_hit)


def write(process: str, tenant: str, change: Change) -> int:
    """Let the admin change something; the status."""
    path, form = change
    body = form if isinstance(form, str) else urlencode(form)
    headers = {'X-Tenant': tenant, 'X-User': 'admin'}
    if not isinstance(form, str):
        headers['Content-Type'] = 'application/x-www-form-urlencoded'
    response, _ = send(process, 'POST', path, headers, body)
    return int(response.status)


def send(
    process: str, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> tuple[Any, bytes]:
    connection = HTTPConnection(process, timeout=30)
    try:
        connection.request(method, path, body, headers)
        response = connection.getresponse()
        return response, response.read()
    finally:
        connection.close()


class Tags:
    """What the entity tags stand for that the processes have given, to whoever it was."""

    def __init__(self) -> None:
        self.bodies: dict[str, bytes] = {}
        self.of_path: dict[str, list[str]] = {}

    def learn(self, visit: Visit, seen: Seen) -> None:
        """Remember a tag, which must not have stood for another body."""
        if seen.tag is None or seen.answer.status != 200:
            return
        if seen.tag not in self.bodies:
            self.of_path.setdefault(visit.path, []).append(seen.tag)
        assert self.bodies.setdefault(seen.tag, seen.answer.body) == seen.answer.body, visit

    def known(self, visit: Visit) -> list[str]:
        """The last tags that anybody was given for the visit's path, in any tenant."""
        return self.of_path.get(visit.path, [])[-MOST_TAGS:]

    def body(self, seen: Seen) -> bytes:
        """The body that a browser shows after a 304."""
        assert seen.tag is not None
        assert seen.answer.body == b''
        return self.bodies[seen.tag]


def check_round(
    random: Random,
    readers: ThreadPoolExecutor,
    processes: Sequence[str],
    expected: dict[Visit, Answer],
    tags: Tags,
) -> Counter[str]:
    """Check that each visitor gets what is expected, from several processes and as 304.

    :return: the number of hits of each view, and of the answers with 304 as ``'304'``.
    """
    found: Counter[str] = Counter()
    asked = [(visit, known) for visit in expected for known in ((), tags.known(visit))]
    random.shuffle(asked)
    answers = [
        (visit, readers.submit(ask, random.choice(processes), visit, known))
        for visit, known in asked
    ]
    not_modified = []
    for visit, future in answers:
        seen = future.result()
        found[VIEW_OF[visit.path]] += seen.is_hit
        if seen.answer.status == 304:
            not_modified.append((visit, seen))
            continue
        assert seen.answer == expected[visit], visit
        tags.learn(visit, seen)
    for visit, seen in not_modified:
        assert (200, tags.body(seen)) == (expected[visit].status, expected[visit].body), visit
    found['304'] += len(not_modified)
    return found


def change_and_read(
    random: Random,
    readers: ThreadPoolExecutor,
    processes: Sequence[str],
    visits: Sequence[Visit],
) -> int:
    """Change something while others read, who may see the state before or after it.

    :return: the number of changes that were not refused.
    """
    choose = partial(random.choice, processes)
    writes = [
        readers.submit(write, choose(), random.choice(TENANTS), random.choice(WRITES))
        for _ in range(WRITES_AT_ONCE)
    ]
    reads = [readers.submit(ask, choose(), each) for each in random.sample(visits, READS_BESIDE)]
    assert {read.result().answer.status for read in reads} <= {200, 400, 403, 404}
    return sum(each.result() == 200 for each in writes)


def test_all_views_are_visited() -> None:
    """No view of the town hall is left out: whoever adds one adds its paths here."""
    views = set()
    for app_class in Town, Wiki:
        app_class.commit()
        for action, view in dectate.query_app(app_class, 'view'):
            is_read = action.predicates.get('request_method', 'GET') == 'GET'
            if is_read and not issubclass(action.model, BaseException):
                views.add(view.__name__)
    assert views == PATHS.keys()


def test_each_visitor_gets_the_same_bytes(plain: Plain, processes: list[str]) -> None:
    """Whoever asks, in whichever tenant, language and process, and whatever was changed before:
    status, body and the application's headers are those of the view, also after a 304."""
    seed = int(os.environ.get('ORMCACHE_TEST_SEED') or SystemRandom().randrange(10**6))
    print(f'ORMCACHE_TEST_SEED={seed}')
    random = Random(seed)
    visits = [Visit(*each) for each in product(VIEW_OF, USERS, TENANTS, LANGUAGES, COOKIES)]
    random.shuffle(visits)
    found: Counter[str] = Counter()
    changes = 0
    tags = Tags()
    with ThreadPoolExecutor(THREADS) as readers:
        for at in range(0, len(visits), ROUND):
            expected = plain.answers(visits[at : at + ROUND])
            found += check_round(random, readers, processes, expected, tags)
            changes += change_and_read(random, readers, processes, visits)
    # or nothing of this was about cached responses
    print(f'{found}, {changes} changes')
    assert found.keys() == {*PATHS, '304'} - {'view_export'}
    assert changes > 10
