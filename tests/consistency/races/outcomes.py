"""A writer dies, is slow, or never hears what became of its COMMIT."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from onegov_ormcache.steps import Step
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import committed
from tests.support.models import User

from .world import App, World, commit_unseen, differs, driver_connection


def dead_writer(world: World) -> Iterator[str]:
    """A writer dies after its COMMIT, before the new versions; or before its COMMIT."""
    for step, expected in (Step.PUBLISH, ['new']), (Step.COMMIT, ['old']):
        writer, reader = world.start()
        world.names(reader)
        with writer.request_scope(world.tenant) as scope:
            world.rename(scope)
            try:
                with before(step, die):
                    scope.session().commit()
            except Died:
                pass
        for app in reader, writer:
            yield from differs(f'died before {step}', world.names(app), expected)
        # it is settled by those who meet it: soon nobody runs a creator any more
        for _ in range(200):
            world.names(reader)
            ran = App.runs.count('names')
            world.names(reader)
            if App.runs.count('names') == ran:
                break
        else:
            yield f'died before {step}: the tag stays in doubt'
        with committed(reader, world.tenant) as scope:
            scope.session().query(User).delete()
        for app in writer, reader:
            app.close_orm_cache()


def slow_writer(world: World) -> Iterator[str]:
    """A writer that only takes its time is not settled while its COMMIT is on its way."""
    writer, reader = world.start()
    world.names(reader)

    def read_for_a_while() -> None:
        for _ in range(20):
            seen.append(world.names(reader))
            reader.orm_cache.settler._asked.clear()

    seen: list[Any] = []
    with before(Step.COMMIT, read_for_a_while), committed(writer, world.tenant) as scope:
        world.rename(scope)
    yield from differs('meanwhile', seen, [['old']] * 20)
    yield from differs('after the commit', world.names(reader), ['new'])


def commit_whose_answer_is_lost(world: World) -> Iterator[str]:
    """An interrupt comes after the server has committed, before the writer hears of it."""
    writer, reader = world.start()
    world.names(reader)

    def commit_unheard() -> None:
        commit_unseen(connection)
        raise KeyboardInterrupt

    with writer.request_scope(world.tenant) as scope:
        world.rename(scope)
        connection = driver_connection(scope)
        try:
            with before(Step.COMMIT, commit_unheard):
                scope.session().commit()
        except KeyboardInterrupt:
            pass
    for app in reader, writer:
        yield from differs('after the commit', world.names(app), ['new'])
