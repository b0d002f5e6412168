"""A site of pages behind real WSGI servers: what the contestants of :mod:`.case_responses` serve.

A page shows the entries of its category, which posts change, beside nine boxes that all pages have
in common, which nothing changes; each line of them is a link. Some pages have no such entries. The
environment variables :data:`CONFIGURATION` (settings as JSON) and :data:`MODE` tell what is
served.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from html import escape
from typing import Any

from sqlalchemy import Select, literal, select, update

from fixtures.townhall.serving import without_cache
from onegov_ormcache import OrmCacheApp, OrmCacheMiddleware, cached, orm_cached
from onegov_ormcache.tags.memory import MemoryTagStore

from .schema import Base, Item, Node

CONFIGURATION = 'BENCHMARK_PAGES'
MODE = 'BENCHMARK_MODE'
#: The number of boxes that a page has beside its entries, of so many lines each.
BOXES = 9
LINES = 20
#: The nodes that fill the boxes; see ``schema.node_rows``.
NODES = 300
#: The pages from this number on show nodes in the place of entries: no post changes them.
QUIET = 100


class Root:
    """The model at /, which tells that the site is served."""


class Page:
    """The page of a category."""

    def __init__(self, number: int) -> None:
        self.number = number


class Line:
    """The model that a line links to; nobody goes there."""

    def __init__(self, id: int) -> None:
        self.id = id


def box_of(number: int) -> Select[Any]:
    query = select(Node.id, Node.title).where(Node.parent_id == number)
    return query.order_by(Node.id).limit(LINES)


def entries_of(number: int) -> Select[Any]:
    query = select(Item.id, Item.name, Item.value).where(Item.category == number)
    return query.order_by(Item.id).limit(LINES)


def quiet_entries_of(number: int) -> Select[Any]:
    query = select(Node.id, Node.title, literal(0)).where(Node.parent_id == number - QUIET)
    return query.order_by(Node.id).limit(LINES)


class Site(OrmCacheApp):
    """The application; it gets its boxes ``box0``, ``box1``... in :func:`site_class`."""

    @orm_cached(policy='on-table-change:items')
    def entries(self, number: int) -> Any:
        return entries_of(number)

    @orm_cached(policy='on-table-change:nodes')
    def quiet_entries(self, number: int) -> Any:
        return quiet_entries_of(number)


Site.path(path='')(Root)
Site.path(path='pages/{number}', converters={'number': int})(Page)
Site.path(path='nodes/{id}', converters={'id': int})(Line)


@Site.view(model=Root)
def view_root(self: Root, request: Any) -> str:
    return 'served'


@Site.html(model=Page, cached=cached(public=True))
def view_page(self: Page, request: Any) -> str:
    app = request.app
    boxes = [getattr(app, f'box{number}') for number in range(BOXES)]
    shown = app.entries if self.number < QUIET else app.quiet_entries
    entries = shown(self.number)
    lines = [f'{name}: {value}' for _, name, value in entries]
    return html_of(
        [[(request.link(Line(id)), title) for id, title in box] for box in boxes],
        [(request.link(Line(each[0])), line) for each, line in zip(entries, lines, strict=True)],
        entries[0][2],
    )


@Site.view(model=Page, request_method='POST')
def change_page(self: Page, request: Any) -> str:
    """Add one to the value of each entry of the page."""
    items = update(Item).where(Item.category == self.number)
    request.app.session().execute(items.values(value=Item.value + 1))
    return 'changed'


def html_of(
    boxes: Iterable[Iterable[tuple[str, str]]], entries: Iterable[tuple[str, str]], value: int
) -> str:
    """Return the page, of links with their texts; its first line has the value of its entries."""
    lists = '\n'.join(f'<nav><ul>\n{lines_of(box)}</ul></nav>' for box in boxes)
    main = f'<main><ul>\n{lines_of(entries)}</ul></main>'
    return f'<!-- value={value} --><html><body>\n{lists}\n{main}\n</body></html>\n'


def lines_of(links: Iterable[tuple[str, str]]) -> str:
    return ''.join(
        f'<li class="line"><a href="{escape(url)}">{escape(text)}</a></li>\n'
        for url, text in links
    )


def box_creator(number: int) -> Any:
    def creator(app: Any) -> Any:
        return box_of(number)

    creator.__name__ = f'box{number}'
    return creator


def site_class(settings: dict[str, Any]) -> Any:
    """Return the class of an application with the settings of the section ``orm_cache``."""
    body: dict[str, Any] = {'__module__': __name__, '__qualname__': 'BenchmarkSite'}
    for number in range(BOXES):
        body[f'box{number}'] = orm_cached(policy='on-table-change:nodes')(box_creator(number))
    metaclass: Any = type(Site)
    site = metaclass('BenchmarkSite', (Site,), body)
    site.setting_section(section='orm_cache')(lambda: {'base': Base, **settings})
    return site


def make() -> OrmCacheMiddleware:
    """The application, made in the process that serves it.

    Its mode is ``pages``, ``properties`` (no responses are cached) or ``none``.
    """
    configuration = json.loads(os.environ[CONFIGURATION])
    mode = os.environ[MODE]
    settings = {
        **{name: configuration[name] for name in ('dsn', 'redis_url', 'namespace')},
        'cached_responses': mode == 'pages',
    }
    application = OrmCacheMiddleware(site_class(settings)(), schema=configuration['schema'])
    if mode == 'none':
        without_cache(application)
        # nothing is cached, so nobody needs to be told of changes: no Redis either
        application.app.orm_cache.versions.tags = MemoryTagStore()
    return application


def site_environment(mode: str, **configuration: Any) -> dict[str, str]:
    """Return the environment variables of a process that serves the site."""
    return {CONFIGURATION: json.dumps(configuration), MODE: mode}
