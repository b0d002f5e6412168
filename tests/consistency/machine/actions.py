"""The actions of scopes: they open, read, change, commit and close. Each read is checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import note
from sqlalchemy.exc import DBAPIError, InvalidRequestError

from onegov_ormcache import RetryableConflict
from tests.consistency.interleaving import Died
from tests.consistency.town import PARTS, Identity, parts_of, possible

from .open_scopes import SLOTS, Open, Seen, tier_of
from .promise import PromiseModel


class Actions(PromiseModel):
    """Actions in an open scope, or in a scope that the action opens and closes itself."""

    def open(self, app: int, tenant: int, role: str) -> Open | None:
        name = self.world.tenants[tenant]
        taken = {other.slot for other in self.opened if other.tenant == name}
        free = [slot for slot in SLOTS if slot not in taken]
        if not free:
            return None
        apps = self.world.apps[self.world.level]
        chosen = apps[app % len(apps)]
        scope = chosen.open_scope(name, create=True)
        row = self.history[name][self.look(name)].get(free[0])
        opened = Open(scope, chosen, name, free[0], role, self.world.lasts, row)
        self.opened.append(opened)
        return opened

    def close(self, opened: Open) -> None:
        if not opened.closed:
            opened.closed = True
            self.opened.remove(opened)
            with opened.scope.active():
                opened.scope.close()

    def attempt(self, opened: Open, do: Callable[[], object]) -> bool:
        """Do something in a scope. Return True if it succeeded; False if it failed, or if the
        scope is closed.

        An error rolls the scope back; the death of its process (`Died`) closes it.
        """
        if opened.closed:
            return False
        self.touch(opened)
        outside = opened.app.identity
        try:
            with opened.scope.active():
                opened.app.identity = Identity(opened.role)
                do()
        except (DBAPIError, RetryableConflict, InvalidRequestError) as error:
            note(f'failed: {error!r}'[:200])
            with opened.scope.active():
                opened.scope.reset()
            self.ended(opened)
            return False
        except Died:
            self.close(opened)
            return False
        finally:
            opened.app.identity = outside
        self.done(opened)
        return True

    def read(self, opened: Open, name: str) -> None:
        def do() -> None:
            with opened.app.recording() as events:
                value = getattr(opened.app, name)
            last = events[-1].tier
            tiers = {event.name.split('.')[-1]: event.tier for event in events[:-1]}
            for part, given in parts_of(name, value):
                tier = tiers.get(part) if last == 'creator' and name in PARTS else last
                hit = tier in ('process', 'shared')
                opened.seen.append(Seen(part, given, opened.role, opened.row, hit))
            if name == 'framed':
                opened.kept.append(list(value[1:]))

        if self.attempt(opened, do):
            try:
                self.check(opened)
            finally:
                opened.kept = [kept for kept in opened.kept if self.is_kept(opened, kept)]

    @staticmethod
    def is_kept(opened: Open, value: Any) -> bool:
        """Return whether a request-cached property of the scope holds the value."""
        return any(entry.encoded is None and entry.value == value for entry in tier_of(opened))

    def change(self, opened: Open, kind: int) -> None:
        changes = possible(opened.row)
        name = list(changes)[kind % len(changes)]
        self.counter += 1

        def do() -> None:
            session = opened.scope.session()
            session.flush()
            session.expunge_all()
            opened.row = changes[name](session, opened.slot, opened.row, str(self.counter))

        note(f'{name} in slot {opened.slot}')
        self.attempt(opened, do)

    def commit(self, opened: Open) -> None:
        row = opened.row
        if self.attempt(opened, lambda: opened.scope.commit()) and not opened.closed:
            self.ended(opened)
            assert opened.row == row, 'what was committed is in the database'

    def write(self, app: int, tenant: int, kind: int) -> None:
        """Make another request, from its begin to its end, that changes a row and commits."""
        if opened := self.open(app, tenant, 'member'):
            self.change(opened, kind)
            self.commit(opened)
            self.close(opened)

    def look_in(self, app: int, tenant: int, *names: str) -> None:
        """Make another request that only reads."""
        if opened := self.open(app, tenant, 'member'):
            for name in names:
                self.read(opened, name)
            self.close(opened)
