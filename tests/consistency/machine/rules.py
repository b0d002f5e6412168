"""The rules of the state machine: what can happen next, and what must hold in the end."""

from __future__ import annotations

import time
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import Bundle, consumes, initialize, multiple, precondition, rule

from onegov_ormcache.steps import Step
from onegov_ormcache.tags.settling import Settler
from tests.consistency.interleaving import Died
from tests.consistency.town import EXPECTED, PROPERTIES, Identity, Town, parts_of

from .actions import Actions
from .interrupting import after_each_commit, between
from .open_scopes import Open
from .worlds import LEVELS


class CacheMachine(Actions):
    """One example: scopes that open, read, change, end and die."""

    scopes = Bundle('scopes')

    @initialize(level=st.sampled_from(LEVELS))
    def begin(self, level: str) -> None:
        if level in self.world.apps:
            self.world.level = level
        for tenant in self.world.tenants:
            self.world.empty(tenant)
            self.history[tenant] = [{}]

    # the rules

    @rule(
        target=scopes,
        app=st.integers(0, 1),
        tenant=st.integers(0, 1),
        role=st.sampled_from(['member', 'admin']),
    )
    def open_scope(self, app: int, tenant: int, role: str) -> Any:
        opened = self.open(app, tenant, role)
        return multiple() if opened is None else opened

    @rule(opened=scopes, name=st.sampled_from(PROPERTIES))
    def read_property(self, opened: Open, name: str) -> None:
        self.read(opened, name)

    @rule(opened=scopes, kind=st.integers(0, 11))
    def change_rows(self, opened: Open, kind: int) -> None:
        self.change(opened, kind)

    @rule(opened=scopes)
    def begin_savepoint(self, opened: Open) -> None:
        def do() -> None:
            opened.savepoints.append((opened.scope.session().begin_nested(), opened.row))

        self.attempt(opened, do)

    @rule(opened=scopes, release=st.booleans())
    def end_savepoint(self, opened: Open, release: bool) -> None:
        if opened.closed or not opened.savepoints:
            return
        savepoint, row = opened.savepoints.pop()
        if self.attempt(opened, savepoint.commit if release else savepoint.rollback):
            opened.row = opened.row if release else row

    @rule(opened=scopes)
    def commit_scope(self, opened: Open) -> None:
        self.commit(opened)

    @rule(opened=scopes)
    def roll_back_scope(self, opened: Open) -> None:
        if self.attempt(opened, lambda: opened.scope.session().rollback()):
            self.ended(opened)

    @rule(opened=consumes(scopes))
    def close_scope(self, opened: Open) -> None:
        self.close(opened)

    @rule(opened=consumes(scopes))
    def end_connection(self, opened: Open) -> None:
        if not opened.closed:
            self.world.connection_ender(opened)()
            self.close(opened)

    @rule(
        opened=scopes,
        step=st.sampled_from([Step.DOUBT, Step.COMMIT, Step.PUBLISH]),
        connection=st.booleans(),
        kind=st.integers(0, 11),
    )
    def die_while_committing(
        self, opened: Open, step: Step, connection: bool, kind: int
    ) -> None:
        self.look_in(1, self.world.tenants.index(opened.tenant), *PROPERTIES)
        self.change(opened, kind)
        end_connection = self.world.connection_ender(opened)

        def die() -> None:
            if connection and self.world.servers and step is not Step.PUBLISH:
                end_connection()
            else:
                raise Died

        with between(step, die):
            self.commit(opened)

    @rule(opened=scopes, cut=st.booleans(), kind=st.integers(0, 11))
    def commit_without_an_answer(self, opened: Open, cut: bool, kind: int) -> None:
        self.look_in(1, self.world.tenants.index(opened.tenant), *PROPERTIES)
        self.change(opened, kind)
        end_connection = self.world.connection_ender(opened)

        def unanswered(checkout: Any) -> None:
            if cut and self.world.servers:
                end_connection()
                checkout.dbapi_connection.execute('SELECT 1')  # raises what a COMMIT would
            raise Died

        engine = opened.app.session_manager.database.engine(opened.tenant)
        with after_each_commit(engine, unanswered):
            self.commit(opened)

    @rule(
        opened=scopes,
        step=st.sampled_from([Step.DOUBT, Step.COMMIT, Step.PUBLISH]),
        app=st.integers(0, 1),
        name=st.sampled_from(PROPERTIES),
        loss=st.none() | st.integers(0, 5),
        kind=st.integers(0, 11),
    )
    def commit_while_others_read(
        self, opened: Open, step: Step, app: int, name: str, loss: int | None, kind: int
    ) -> None:
        self.change(opened, kind)

        def others() -> None:
            if loss is not None:
                self.world.lose_store(loss)
            self.look_in(app, self.world.tenants.index(opened.tenant), name)
            self.look_in(app, self.world.tenants.index(opened.tenant), name)

        with between(step, others):
            self.commit(opened)

    @rule(
        opened=scopes,
        name=st.sampled_from(PROPERTIES),
        step=st.sampled_from(
            [
                Step.SNAPSHOT,
                Step.VIEW,
                Step.SECOND_SNAPSHOT,
                Step.PROCESS_TIER,
                Step.SHARED_TIER,
                Step.CREATOR,
                Step.FILL,
            ]
        ),
        app=st.integers(0, 1),
        kind=st.integers(0, 11),
    )
    def read_while_another_commits(
        self, opened: Open, name: str, step: Step, app: int, kind: int
    ) -> None:
        with between(
            step, lambda: self.write(app, self.world.tenants.index(opened.tenant), kind)
        ):
            self.read(opened, name)

    @rule(app=st.integers(0, 1), tenant=st.integers(0, 1), kind=st.integers(0, 11))
    def another_commits(self, app: int, tenant: int, kind: int) -> None:
        self.write(app, tenant, kind)

    @rule(app=st.integers(0, 1), tenant=st.integers(0, 1))
    def another_reads(self, app: int, tenant: int) -> None:
        self.look_in(app, tenant, *PROPERTIES)

    @rule(opened=scopes, kind=st.integers(0, 11), name=st.sampled_from(PROPERTIES))
    def read_what_is_undone(self, opened: Open, kind: int, name: str) -> None:
        self.begin_savepoint(opened)
        self.change(opened, kind)
        self.read(opened, name)
        self.end_savepoint(opened, release=False)
        self.read(opened, name)

    @precondition(lambda self: self.world.servers)
    @rule(how=st.integers(0, 15))
    def store_loses(self, how: int) -> None:
        self.world.lose_store(how)

    @rule(app=st.integers(0, 1))
    def process_forgets(self, app: int) -> None:
        apps = self.world.apps[self.world.level]
        tier = apps[app % len(apps)].orm_cache.process_tier
        for key in tier.held():
            tier.remove(key)

    # the end

    def teardown(self) -> None:
        """All is given back, and nothing is in doubt for ever."""
        for opened in list(self.opened):
            self.close(opened)
        if not self.history:
            return
        for app in self.world.apps[self.world.level]:
            if not self.world.servers:
                cache = app.orm_cache
                cache.settler = Settler(cache.tags, lease=0.0)
            for tenant in self.world.tenants:
                self.becomes_quiet(app, tenant)

    def becomes_quiet(self, app: Town, tenant: str) -> None:
        """Every property gives what the database has, and soon without its creator."""
        truth = self.world.truth(tenant)
        ran: list[str] = []
        for _ in range(40):
            ran = []
            for role in ('member', 'admin'):
                app.identity = Identity(role)
                for name in PROPERTIES:
                    with app.request_scope(tenant), app.recording() as events:
                        value = getattr(app, name)
                    for part, given in parts_of(name, value):
                        assert given == EXPECTED[part](truth, role), f'{name} in quiet'
                    ran += [name for event in events if event.tier == 'creator']
            if not ran:
                return
            time.sleep(0.03)
        raise AssertionError(f'the creators of {sorted(set(ran))} run again and again')
