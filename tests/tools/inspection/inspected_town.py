"""The application that is inspected."""

from __future__ import annotations

from onegov_ormcache import OrmCacheApp, orm_cached, rows
from tests.support.models import Document, User


class Town(OrmCacheApp):
    """An application with a property of each kind of policy."""

    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        return [name for (name,) in self.session().query(User.name).order_by(User.name)]

    @orm_cached(policy=rows(User.id))
    def name(self, id: int) -> str | None:
        found: str | None = self.session().query(User.name).filter(User.id == id).scalar()
        return found

    @orm_cached(policy=lambda obj: isinstance(obj, Document))
    def titles(self) -> list[str]:
        return [title for (title,) in self.session().query(Document.title)]

    @orm_cached(policy='on-table-change:groups', expires=60)
    def short_lived(self) -> str:
        return 'short'


def read(app: Town) -> tuple[object, ...]:
    return app.names, app.name(1), app.titles, app.short_lived
