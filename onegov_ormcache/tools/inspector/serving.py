"""The servers and settings that matter in an outage, as sentences for people."""

from __future__ import annotations

from typing import NamedTuple

from ...core.cache import OrmCache
from ...errors import StoreUnreachable
from ...redis_client.urls import parse

#: What the application does while Redis is away, by the setting ``on_outage``.
MEANWHILE = {
    'outbox': 'The application answers from the database. Commits go on; what they change waits '
    'in the outbox of the database.',
    'refuse': 'The application answers from the database, and refuses commits that change tables.',
    'continue': 'The application answers from the database. Commits go on, so when Redis is back, '
    'values may be stale that another process has not evicted.',
    'expire': 'The application answers from the database. Commits go on; values that they have '
    'changed may be used until they expire.',
}


class Notice(NamedTuple):
    """Something that a visitor should know."""

    #: ``'good'`` or ``'bad'``.
    kind: str
    title: str
    text: str


def facts(cache: OrmCache) -> list[tuple[str, str]]:
    """Return what is used, each with its name; without passwords."""
    settings = cache.settings
    in_memory = cache.tags.single_process
    return [
        ('Database', cache.observer.database.address),
        ('Redis', 'none: this process keeps all in its memory' if in_memory or not
         settings.redis_url else str(parse(settings.redis_url))),
        ('Namespace', settings.namespace),
        ('Release', settings.release or 'none is set'),
        ('While Redis is away (on_outage)', MEANWHILE.get(str(settings.on_outage), '')),
        ('Values are kept (expiration_time)', 'as long as nothing has changed'
         if settings.lifetime is None else f'{settings.lifetime:g} seconds at most'),
        ('Changes by other programs (listen)', 'evict values where the tables have triggers'
         if settings.listen else 'evict nothing'),
    ]  # fmt: skip


def notices(cache: OrmCache) -> list[Notice]:
    """Return what is wrong with the servers, or that nothing is."""
    meanwhile = MEANWHILE.get(str(cache.settings.on_outage), '')
    try:
        cache.tags.check()
    except StoreUnreachable as error:
        return [Notice('bad', 'Redis can not be reached', f'{error} {meanwhile}')]
    if cache.recovery is not None and not cache.recovery.is_current:
        return [Notice(
            'bad', 'An outage may not be over yet',
            'Redis answers. What waits in the outbox is delivered before values are used again.',
        )]  # fmt: skip
    return [Notice('good', 'All is well', 'Versions and values can be read and stored.')]
