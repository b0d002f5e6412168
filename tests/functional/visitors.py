"""Visitors of the town hall: what they look at, and what they change.

Answers are called fresh if the views gave them just after all cached values were made
invalid, so that each answer comes from the database.
"""

from __future__ import annotations

from typing import Any

from webtest import TestApp

from fixtures.townhall import load
from onegov_ormcache import OrmCacheMiddleware

Change = tuple[str, dict[str, str] | str]

#: The views that together show all that can be changed: path and user (None is anonymous).
VIEWS = (
    ('/', None),
    ('/', 'admin'),
    ('/tree', None),
    ('/tree', 'admin'),
    ('/pages/1', None),
    ('/search?words=y', None),
    ('/search?words=y', 'admin'),
    ('/users', None),
    ('/tickets', None),
    ('/tickets/mine', 'editor'),
    ('/documents', None),
    ('/documents', 'admin'),
    ('/wiki', None),
    ('/wiki', 'admin'),
)

# Iceland's data: the page 1 is the country, 2 to 4 are regions, 5 to 10 cities, 14 to 16
# news; the user 3 is the member; the ticket 2 is closed; the document 2 is secret
PAGE_CHANGES: dict[str, Change] = {
    'rename a page': ('/pages/5/rename', {'title': 'Smoky Bay'}),
    'rename the country': ('/pages/1/rename', {'title': 'Ísland'}),
    'add a page': ('/pages/2', {'title': 'New'}),
    'add a page for the admin': ('/pages/2', {'title': 'New', 'visible_to': 'admin'}),
    'move a page': ('/pages/5/move', {'parent': '3'}),
    'delete a page': ('/pages/5/delete', {}),
    'delete a page with all below it': ('/pages/2/delete', {}),
    'import pages': ('/pages/2/import', '7;One\n8;Two'),
    'add news': ('/pages/1/news', {'title': 'New', 'lead': '-', 'published': '2031-01-01'}),
    'change the second table of news': ('/pages/16/lead', {'lead': 'Changed'}),
    'rename news': ('/pages/16/rename', {'title': 'Changed'}),
    'delete news': ('/pages/16/delete', {}),
}
OTHER_CHANGES: dict[str, Change] = {
    'open a ticket': ('/tickets', {'title': 'New', 'handler': '3'}),
    'close a ticket': ('/tickets/1/close', {}),
    'reopen a ticket': ('/tickets/2/reopen', {}),
    'assign a ticket': ('/tickets/1/assign', {'handler': '2'}),
    'close all tickets': ('/tickets/close-all', {}),
    'add a user': ('/users', {'login': 'new', 'name': 'New', 'role': 'member'}),
    'rename a user': ('/users/3/rename', {'name': 'Changed'}),
    'join a department': ('/users/3/join', {'department': 'Roads'}),
    'leave a department': ('/users/3/leave', {'department': 'Taxes'}),
    'delete a user with tickets': ('/users/3/delete', {}),
    'add a document': ('/documents', {'title': 'New', 'page': '1'}),
    'add a secret document': ('/documents', {'title': 'New', 'page': '1', 'secret': '1'}),
    'rename a document': ('/documents/1/rename', {'title': 'Changed'}),
    'rename a secret document': ('/documents/2/rename', {'title': 'Changed'}),
    'hide a document': ('/documents/1/hide', {}),
    'publish a document': ('/documents/2/publish', {}),
    'delete a secret document': ('/documents/2/delete', {}),
    'add an article': ('/wiki', {'title': 'New'}),
    'rename an article': ('/wiki/articles/1/rename', {'title': 'Changed'}),
}
CHANGES = PAGE_CHANGES | OTHER_CHANGES


class TownHall:
    """The application of one test, and its visitors."""

    def __init__(self, application: OrmCacheMiddleware, prefix: str) -> None:
        self.application = application
        self.prefix = prefix

    def load(self, *codes: str) -> None:
        for code in codes:
            assert load(self.application.app, self.prefix + code)

    def visitor(self, tenant: str = 'is', user: str | None = None) -> TestApp:
        headers = {'HTTP_X_TENANT': tenant} | ({'HTTP_X_USER': user} if user else {})
        return TestApp(self.application, extra_environ=headers)

    def get(self, path: str, user: str | None = None, tenant: str = 'is') -> Any:
        return self.visitor(tenant, user).get(path).json

    def post(
        self, path: str, form: dict[str, str] | str, user: str | None = 'editor', status: int = 200
    ) -> Any:
        return self.visitor('is', user).post(path, form, status=status)

    def everything(self, tenant: str = 'is') -> dict[tuple[str, str | None], Any]:
        """Return what all views show, by path and user."""
        return {(path, user): self.get(path, user, tenant) for path, user in VIEWS}

    def fresh(self, tenant: str = 'is') -> dict[tuple[str, str | None], Any]:
        """Return what all views show after all cached values were made invalid."""
        self.application.app.orm_cache.tags.renew(self.prefix + tenant)
        with self.application.app.recording() as events:
            seen = self.everything(tenant)
        assert {event.tier for event in events} >= {'creator'}
        return seen

    def computed(self, tenant: str = 'is') -> set[str]:
        """Return the names of the properties that all views together have to compute now."""
        with self.application.app.recording() as events:
            self.everything(tenant)
        computed = {e.name for e in events if e.tier == 'creator'}
        # the views that were run for their responses are no properties
        return {name.rpartition('.')[2] for name in computed if '.view(' not in name}

    def titles(self, user: str | None = None, tenant: str = 'is') -> list[str]:
        """Return the titles of the page tree that a user sees."""
        return titles(self.get('/tree', user, tenant))


def titles(node: dict[str, Any]) -> list[str]:
    return [node['title'], *(title for child in node['children'] for title in titles(child))]
