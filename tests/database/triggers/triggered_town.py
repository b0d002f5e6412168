"""An application, and a function and a trigger in its database that change its users."""

from __future__ import annotations

from onegov_ormcache import OrmCacheApp, orm_cached
from tests.support.models import User

FUNCTION = """
CREATE FUNCTION rename_all(to_name text) RETURNS integer LANGUAGE plpgsql AS $$
BEGIN UPDATE users SET name = to_name; RETURN 1; END $$
"""

APPLICATION_TRIGGER = """
CREATE FUNCTION rename_by_group() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN UPDATE users SET name = NEW.name; RETURN NEW; END $$;
CREATE TRIGGER rename_by_group AFTER INSERT ON groups
FOR EACH ROW EXECUTE FUNCTION rename_by_group()
"""


class Town(OrmCacheApp):
    """Properties by tables, and one by a function."""

    @orm_cached(policy='on-table-change:users')
    def names(self) -> list[str]:
        return [name for (name,) in self.session().query(User.name).order_by(User.id)]

    @orm_cached(policy=lambda obj: isinstance(obj, User) and obj.name.startswith('A'))
    def names_with_a(self) -> list[str]:
        query = self.session().query(User.name).order_by(User.id)
        return [name for (name,) in query if name.startswith('A')]
