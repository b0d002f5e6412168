"""The demo: sends requests to a town hall application, and prints what the cache does.

Each tenant of the application, :mod:`.townhall`, is a country. The demo needs the extra ``demo``.
At the end it removes all that it has made, in a temporary folder or on the
servers that it was given.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text
from waitress.server import create_server
from webob import Request

from ..core.recording import CacheEvent, Tier
from ..errors import OrmCacheError
from ..tags.snapshot import TABLE_TAG
from ..web.middleware import OrmCacheMiddleware
from .demo_backend import PAGE, Backend, temporary
from .townhall import Tenant, load, tenants
from .townhall.serving import without_cache

#: ISO codes of the countries that are loaded first: large and small ones in turn.
FAMILIAR = ('ch', 'jp', 'is', 'us', 'ke')

#: A request that reads many values of one property, and the form that renames one of the pages.
SEARCH, RENAMED = '/search?words=e', {'title': 'Renamed'}

#: How often a request is timed. The fastest time counts, because other load on the machine
#: can only add to it.
REPEATS = 15

#: The colour of each tier, from the cheapest tier to the most expensive.
COLOURS: dict[Tier, str] = {
    'request': 'green',
    'process': 'green',
    'shared': 'cyan',
    'creator': 'yellow',
}


def run(dsn: str | None, redis_url: str | None, count: int | None, port: int | None) -> None:
    """Load data, send requests, and print what the cache did and what it saved.

    :param dsn: URL of the database; None for SQLite in a temporary folder.
    :param redis_url: URL of Redis; None for memory.
    :param count: number of countries to load, 2 or more; None for all.
    :param port: the port on which the application keeps running afterwards, 0 for any free
        one; None to end instead.
    :raises OrmCacheError: if a server can't be reached, or the port is not available.
    """
    console = Console(highlight=False)
    with ExitStack() as stack:
        listener = None if port is None else stack.enter_context(listen(port))
        backend = stack.enter_context(temporary(dsn, redis_url))
        loaded = choose(count)
        with backend.application() as application:
            console.print(f'A town hall for each country, on {backend.description}.')
            load_all(console, application, backend.prefix, loaded)
            compared = loaded[: len(FAMILIAR)]
            plain = measure(without_cache(application), compared)
        application = stack.enter_context(backend.application())
        show_story(console, Story(application, loaded[0], loaded[1]).tell())
        show_savings(console, compared, plain, measure(application, compared))
        show_legend(console, backend)
        if listener is not None:
            serve(application, loaded[0], listener)


def choose(count: int | None) -> list[Tenant]:
    """Return the countries to load, :data:`FAMILIAR` ones first.

    :param count: their number; None for all.
    """
    found = {tenant.code: tenant for tenant in tenants()}
    ordered = [found.pop(code) for code in FAMILIAR] + list(found.values())
    return ordered[:count]


def load_all(
    console: Console, application: OrmCacheMiddleware, prefix: str, loaded: Sequence[Tenant]
) -> None:
    """Load the countries, and show the progress.

    :param prefix: the beginning of the schemas' names, before the ISO code.
    """
    cities = sum(tenant.cities for tenant in loaded)
    began = time.perf_counter()
    columns = TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn()
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task('Loading', total=cities)
        for tenant in loaded:
            progress.update(task, description=f'Loading {tenant.name:.20}')
            load(application.app, prefix + tenant.code, partial(progress.advance, task))
    seconds = time.perf_counter() - began
    console.print(f'Loaded {cities:,} cities of {len(loaded)} countries in {seconds:.1f} s.\n')


# the requests


@dataclass(frozen=True)
class Answer:
    """The answer to one request, with the time it took and what the cache did meanwhile."""

    status: int
    body: bytes
    #: The ``ETag`` of a cached page; None of all others.
    tag: str | None
    seconds: float
    events: Sequence[CacheEvent]


@dataclass(frozen=True)
class Scene:
    """One request that the demo shows, with its answer."""

    title: str
    request: str
    answer: Answer
    #: Names of the properties that the request's commits have evicted; with the number of values,
    #: if there are several.
    evicted: Sequence[str]


def ask(
    application: OrmCacheMiddleware,
    tenant: Tenant,
    path: str,
    user: str,
    form: Mapping[str, str] | str | None = None,
    tag: str | None = None,
) -> Answer:
    """Send a request to the application, without a network, and read the whole answer.

    :param user: the login; each tenant has an ``admin``, an ``editor`` and a ``member``.
    :param form: the fields or the text to POST; None for a GET.
    :param tag: the ``ETag`` of the copy that the browser has.
    """
    headers = {'X-Tenant': tenant.code, 'X-User': user}
    if tag is not None:
        headers['If-None-Match'] = tag
    fields = form if isinstance(form, Mapping) else None
    request = Request.blank(path, headers=headers, POST=fields)
    if isinstance(form, str):
        request.method, request.text = 'POST', form
    with application.app.recording() as events:
        began = time.perf_counter()
        response = request.get_response(application)
        content = response.body
        seconds = time.perf_counter() - began
    tag = response.headers.get('ETag')
    return Answer(response.status_code, content, tag, seconds, list(events))


@dataclass
class Story:
    """The requests that the demo shows, sent in their order to two tenants of an application."""

    application: OrmCacheMiddleware
    tenant: Tenant
    other: Tenant
    #: By the name of a property: the tags of each of its values that the last request has read.
    tags: dict[str, list[frozenset[str]]] = field(default_factory=dict)

    def tell(self) -> Iterator[Scene]:
        """Send the requests one after the other; yield each with its answer."""
        yield self.scene('The first request: everything is computed', '/')
        yield self.scene('The same again', '/')
        yield self.scene('Another role sees another page tree', '/', user='admin')
        self.application.app.orm_cache.process_tier.of('').clear()
        yield self.scene('As if by another process (its memory is empty)', '/')
        yield self.scene('The other tenant, for the first time', '/', tenant=self.other)

        page = self.city()
        yield self.scene('An editor renames a page', f'{page}/rename', {'title': 'A new name'})
        yield self.scene('The next request computes what shows pages', '/')
        yield self.scene('The other tenant is untouched', '/', tenant=self.other)

        yield self.scene('A search: each page is a value of its own', SEARCH)
        yield self.scene('One of these pages is renamed', f'{self.found()}/rename', RENAMED)
        yield self.scene('The other pages are used as before', SEARCH)

        yield self.scene('Documents, with a function as policy', '/documents')
        yield self.scene('A public one is renamed', '/documents/1/rename', {'title': 'A map'})
        yield self.scene('The secret ones are not concerned', '/documents')

        yield self.scene('A ticket is closed', '/tickets/1/close', {})
        yield self.scene('The page tree stays, the count is new', '/')
        yield self.scene('All tickets are closed, by one UPDATE', '/tickets/close-all', {})
        yield self.scene('A statement without objects is seen too', '/')

        yield self.scene('An import fails halfway: rolled back', f'{page}/import', '1;One\n2;')
        yield self.scene('Nothing was evicted', '/')

        yield (page_made := self.scene('A page that is cached as a whole', PAGE))
        yield self.scene('The same again: its view is not run', PAGE)
        copy = page_made.answer.tag
        yield self.scene('The browser asks whether its copy is right', PAGE, tag=copy)
        yield self.scene('An editor renames a user', '/users/1/rename', {'name': 'Someone else'})
        yield self.scene('The copy is not right any more', PAGE, tag=copy)

    def scene(
        self,
        title: str,
        path: str,
        form: Mapping[str, str] | str | None = None,
        *,
        user: str = 'member',
        tenant: Tenant | None = None,
        tag: str | None = None,
    ) -> Scene:
        """Send one request, and find out what it evicted.

        :param form: see :func:`ask`; an editor sends it.
        :param tag: see :func:`ask`.
        :param user: the login that sends a GET.
        :param tenant: by default the first of the two.
        """
        tenant = tenant or self.tenant
        user = user if form is None else 'editor'
        before = dict(self.tags)
        answer = ask(self.application, tenant, path, user, form, tag)
        read: dict[str, list[frozenset[str]]] = defaultdict(list)
        for event in answer.events:
            # what came from the request tier was read from another one before
            if event.kind == 'read' and event.tier != 'request':
                read[short(event.name)].append(event.tags)
        self.tags.update(read)
        evicted = evicted_by(tags_changed(answer), before)
        method = 'GET' if form is None else 'POST'
        return Scene(title, f'{method} {path} ({tenant.name}, {user})', answer, evicted)

    def city(self) -> str:
        """Return the path of a city's page."""
        tree = json.loads(ask(self.application, self.tenant, '/tree', 'member').body)
        return f'/pages/{tree["children"][0]["children"][0]["id"]}'


    def found(self) -> str:
        """Return the path of the last page that the search finds."""
        pages = json.loads(ask(self.application, self.tenant, SEARCH, 'member').body)['found']
        return f'/pages/{pages[-1]["id"]}'


def evicted_by(
    changed: frozenset[str], values: Mapping[str, Sequence[frozenset[str]]]
) -> list[str]:
    """Return the names of properties of which a change evicts values.

    :param changed: the changed tags.
    :param values: by name, the tags of each value.
    """
    evicted = []
    for name, each in values.items():
        number = sum(not tags.isdisjoint(changed) for tags in each)
        if number:
            evicted.append(name if len(each) == 1 else f'{name} ({number} of {len(each)})')
    return evicted


def tags_changed(answer: Answer) -> frozenset[str]:
    """Return the tags that the commits of a request have changed."""
    return frozenset(tag for e in answer.events if e.kind == 'commit' for tag in e.tags)


def short(name: str) -> str:
    """Return the last part of the full name of a property or view, without module and class."""
    of_view = name.partition('.view(')[2]
    return f'view {of_view.strip(")").rpartition(".")[2]}' if of_view else name.rpartition('.')[2]


def measure(application: OrmCacheMiddleware, of: Sequence[Tenant]) -> list[float]:
    """Return the shortest time, in seconds, in which each tenant's home page was answered."""
    return [
        min(ask(application, tenant, '/', 'member').seconds for _ in range(REPEATS))
        for tenant in of
    ]


# the output


def show_story(console: Console, scenes: Iterator[Scene]) -> None:
    """Print a table of the requests, with the origin of each value and the time."""
    table = Table(title='What the cache does', title_justify='left', show_lines=True)
    table.add_column('Request', ratio=9)
    table.add_column('Where each value came from, and what was evicted', ratio=11)
    table.add_column('ms', justify='right')
    for at, scene in enumerate(scenes, 1):
        request = Text.assemble(f'{at}. {scene.title}\n', (scene.request, 'dim'))
        table.add_row(request, what_happened(scene), f'{scene.answer.seconds * 1000:.1f}')
    console.print(table)


def what_happened(scene: Scene) -> Text:
    """Return a line for each tier that gave values, and lines on what was evicted and why."""
    changed = tags_changed(scene.answer)
    lines = []
    for tier, colour in COLOURS.items():
        names = Counter(short(e.name) for e in scene.answer.events if e.tier == tier)
        if names:
            # from the request tier a view may read one value many times
            shown = [n if c == 1 or tier == 'request' else f'{n} ({c})' for n, c in names.items()]
            lines.append(Text.assemble((f'{tier}: ', colour), ', '.join(shown)))
    if scene.answer.status == 304:
        lines.append(Text('answered with 304: the copy is right, no page is sent'))
    if scene.answer.status >= 400:
        lines.append(Text(f'answered with {scene.answer.status}'))
    tables = sorted(t.removeprefix(TABLE_TAG) for t in changed if t.startswith(TABLE_TAG))
    if tables:
        lines.append(Text.assemble(('changed: ', 'magenta'), f'table {", ".join(tables)}'))
    if scene.request.startswith('POST') and not changed:
        lines.append(Text('rolled back: nothing evicted'))
    if scene.evicted:
        lines.append(Text.assemble(('evicted: ', 'red'), ', '.join(sorted(scene.evicted))))
    return Text('\n').join(lines)


def show_savings(
    console: Console, of: Sequence[Tenant], plain: Sequence[float], cached: Sequence[float]
) -> None:
    """Print a table that compares the same requests without and with the cache.

    :param of: the tenants.
    :param plain: the seconds without the cache, one number for each tenant.
    :param cached: the seconds with the cache, in the same order.
    """
    table = Table(title='What it saves: GET / with and without cache', title_justify='left')
    table.add_column('Town hall')
    for name in ('cities', 'without, ms', 'with, ms', 'faster'):
        table.add_column(name, justify='right')
    for tenant, slow, fast in zip(of, plain, cached, strict=True):
        times = f'{slow * 1000:.2f}', f'{fast * 1000:.2f}', f'{slow / fast:.0f} times'
        table.add_row(tenant.name, f'{tenant.cities:,}', *times)
    console.print()
    console.print(table)


def show_legend(console: Console, backend: Backend) -> None:
    """Print the meaning of the words in the tables."""
    shared = 'the memory that threads share' if backend.settings['redis_url'] is None else 'Redis'
    words: dict[str, str] = {
        'request': 'the value was read before in this very request',
        'process': 'this process has it in memory, and one look at the versions says it is fresh',
        'shared': f'another process computed it; it was found in {shared}',
        'creator': 'it was computed from the database, now',
        '(50)': 'so many values of a property that takes arguments',
        'changed': 'the tables that the commit has changed',
        'view': 'a page as a whole: if it comes from process or shared, its view was not run',
        'evicted': 'the values that depend on these tables, by their policies: computed anew '
        'when they are next read. Where the policy names rows, those of the changed rows. A '
        'function as policy looks at the changed objects; where '
        'there are none, as with an UPDATE of many rows, it is evicted to be safe',
        'without': f'each value is read from the database each time; the fastest of {REPEATS}',
    }
    table = Table(box=None, show_header=False, padding=(0, 1, 0, 0))
    for word, meaning in words.items():
        table.add_row(Text(word, COLOURS.get(word, 'bold')), meaning)  # type: ignore[call-overload]
    console.print()
    console.print(table)


def listen(port: int) -> socket.socket:
    """Return a socket that listens on 127.0.0.1.

    :param port: 0 for any free port.
    :raises OrmCacheError: if the port is not available.
    """
    try:
        return socket.create_server(('127.0.0.1', port))
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise OrmCacheError(f'port {port}: {reason}; choose one with --port') from error


def serve(application: OrmCacheMiddleware, tenant: Tenant, listener: socket.socket) -> None:
    """Answer requests until Ctrl-C or SIGTERM; print examples of requests first.

    :param tenant: the tenant of the examples.
    """
    server = create_server(application, sockets=[listener])
    port = listener.getsockname()[1]
    address, curl = f'http://127.0.0.1:{port}', f"curl -H 'X-Tenant: {tenant.code}'"
    print(f'\nServing on {address} until Ctrl-C. Try:')
    print(f'  {curl} {address}/')
    print(f"  {curl} -H 'X-User: editor' -d title=Hello {address}/pages/1/rename")
    print(f'or http://{tenant.code}.localhost:{port}/ in a browser.', flush=True)
    try:
        server.run()
    finally:
        server.close()
