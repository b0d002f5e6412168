"""A doubt is early, late, forgotten, or asked about while its writer lives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from sqlalchemy import event, update

from onegov_ormcache.steps import Step
from onegov_ormcache.tags.redis import RedisTagStore
from tests.consistency.interleaving import Died, before, die
from tests.support.applications import committed
from tests.support.models import Document, User

from .world import World, differs

original_doubt = RedisTagStore.doubt


class Travelling:
    """A doubt that arrives when somebody waits for its answer, and not before."""

    def __init__(self, send: Callable[[], Any]) -> None:
        self._send = send

    def result(self) -> Any:
        return self._send().result()

    def leave(self) -> None:
        """It is still on its way."""


def forgotten_before_the_change(world: World) -> Iterator[str]:
    """The store forgets everything after a transaction has begun and before it changes anything;
    readers fill; then it changes, commits, and dies."""
    writer: Any
    writer, reader = world.start()
    writer.orm_cache.is_hasty = True  # for a mutant
    with writer.request_scope(world.tenant) as scope:
        scope.session().connection()
        world.redis.client().flushall()
        for _ in range(3):
            world.names(reader)
        world.rename(scope)
        try:
            with before(Step.PUBLISH, die):
                scope.session().commit()
        except Died:
            pass
    for app in reader, writer:
        yield from differs('after the commit', world.names(app), ['new'])


def doubt_that_travels(world: World) -> Iterator[str]:
    """The doubt takes its time: COMMIT waits for it, and readers after that find it."""
    writer, reader = world.start()
    world.names(reader)
    seen = []

    def doubt(self: RedisTagStore, *arguments: Any) -> Travelling:
        return Travelling(lambda: original_doubt(self, *arguments))

    with (
        patch.object(RedisTagStore, 'doubt', doubt),
        before(Step.PUBLISH, lambda: seen.append(world.names(reader))),
        committed(writer, world.tenant) as scope,
    ):
        world.rename(scope)
    yield from differs('durable, not published', seen, [['new']])


def first_doubt_arrives_last(world: World) -> Iterator[str]:
    """A listener changes another table when the flush has ended and its doubt was sent. The second
    doubt overtakes the first one."""
    writer, reader = world.start()
    world.names(reader)
    sent: list[Any] = []
    seen = []

    def doubt(self: RedisTagStore, *arguments: Any) -> Any:
        sent.append((self, *arguments))
        return original_doubt(self, *arguments)

    def rename(session: Any, context: Any) -> None:
        session.execute(update(User).values(name='new'))

    with (
        patch.object(RedisTagStore, 'doubt', doubt),
        before(Step.COMMIT, lambda: original_doubt(*sent[0]).result()),
        before(Step.PUBLISH, lambda: seen.append(world.names(reader))),
        committed(writer, world.tenant) as scope,
    ):
        event.listen(scope.session(), 'after_flush_postexec', rename, once=True)
        scope.session().add(Document(title='a'))
    if len(sent) != 2:
        yield f'{len(sent)} doubts were sent'
    yield from differs('durable, not published', seen, [['new']])


def asked_beside_its_writer(world: World) -> Iterator[str]:
    """Readers ask about a doubt while its writer is about to commit: they leave it alone."""
    writer, reader = world.start()
    world.names(reader)
    seen = []

    def ask() -> None:
        for _ in range(3):
            reader.orm_cache.settler._asked.clear()
            world.names(reader)

    with (
        before(Step.COMMIT, ask),
        before(Step.PUBLISH, lambda: seen.append(world.names(reader))),
        committed(writer, world.tenant) as scope,
    ):
        world.rename(scope)
    yield from differs('durable, not published', seen, [['new']])
    yield from differs('afterwards', world.names(reader), ['new'])
