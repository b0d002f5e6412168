"""An application with a property for each kind of policy."""

from __future__ import annotations

from typing import Any

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.counting import Runs
from tests.support.models import Document, Letter, User, membership


class Library(OrmCacheApp):
    """An application with a property for each kind of policy."""

    runs = Runs()

    @orm_cached(policy='on-table-change:users')
    def users(self) -> Any:
        self.runs('users')
        return self.session().query(User.name).order_by(User.name)

    @orm_cached(policy='on-table-change:membership')
    def members(self) -> Any:
        return self.session().query(membership.c.user_id, membership.c.group_id)

    @orm_cached(policy='on-table-change:documents')
    def titles(self) -> Any:
        return self.session().query(Document.title).order_by(Document.title)

    @orm_cached(policy='on-table-change:letters')
    def addresses(self) -> Any:
        return self.session().query(Letter.address)

    @orm_cached(policy=lambda obj: isinstance(obj, Document) and obj.state == 'public')
    def public(self) -> Any:
        query = self.session().query(Document.title).filter(Document.state == 'public')
        return query.order_by(Document.title)


def names(app: Library) -> list[str]:
    return [row.name for row in app.users]
