"""An application with two properties, and the settings for one without a back end."""

from __future__ import annotations

from typing import Any

from onegov_ormcache import OrmCacheApp, orm_cached, request_cached
from tests.support.models import Base, User


def configured(app_class: type[OrmCacheApp], **settings: Any) -> type[OrmCacheApp]:
    app_class.setting_section(section='orm_cache')(lambda: {'base': Base, **settings})
    return app_class


class Plain(OrmCacheApp):
    @orm_cached(policy='on-table-change:users')
    def count(self) -> int:
        return self.session().query(User).count()

    @request_cached
    def first(self) -> Any:
        return self.session().query(User).first()
