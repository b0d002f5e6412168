"""The rules for a creator's run: its dependencies, its audit, and whether it may be stored.

This module knows what a run has recorded, and how large a value is. It does not look into the
tiers.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select
from sqlalchemy.orm import Query

from ..errors import AuditError, CircularPropertyError, VariantError
from ..tags.snapshot import TABLE_TAG
from ..tiers.process import bytes_taken
from ..tiers.serializer import Encoded
from .policies import as_written
from .properties import Call, Property
from .protocols import ComputingScope
from .runs import Run
from .settings import OrmCacheSettings

log = logging.getLogger(__name__)


def fetched(scope: ComputingScope | None, result: Any) -> Any:
    """Return the result of a creator; replace a ``Query`` or ``select()`` by a tuple of its rows.

    :param scope: the scope whose session executes a ``select()``; without one it is returned
        as it is.
    """
    if isinstance(result, Query):
        return tuple(result)
    if isinstance(result, Select) and scope is not None:
        return tuple(scope.session().execute(result))
    return result


def learn(scope: ComputingScope, run: Run) -> None:
    """Add the tags of all tables that the run has read to the run's tags.

    These are the tables that its statements have read, and the shared tables that cascade into
    them. Not among them are those of which the property depends on single rows.
    """
    run.tags |= run.reads_beside
    run.tags |= scope.cache.registry.with_shared(run.tags)


def is_storable(run: Run) -> bool:
    """Return whether the run's value may be stored; if not, log the reason, once.

    It may be stored if the run was not tainted, and if its dependencies are known. Under the
    policy ``auto``, the run's statements must tell them. Other policies name them.
    """
    prop = run.prop
    reason = run.why_not_storable() if prop.auto else run.unstorable
    if reason is not None:
        # what a view reads of a request may have names that a visitor has chosen
        subject = 'stored' if prop.declaration.is_response else None
        log_once(prop, f'{prop.where} is not stored: {reason}', subject)
    return reason is None


def audit(scope: ComputingScope, run: Run) -> None:
    """Report the tables that the creator has read and its policy does not mention.

    A warning is logged once. A policy with functions is not audited. Only tables of the
    metadata count: a policy can't mention a database view, but the tables that it shows.

    :raises AuditError: if there is such a table and the setting ``audit`` is ``'error'``.
    """
    prop, mode = run.prop, scope.cache.settings.audit
    missed = scope.cache.registry.of_metadata(run.reads_beside - prop.tags)
    # nobody but the function knows which tables a function policy covers
    if mode == 'off' or not missed or prop.functions:
        return
    tables = ', '.join(sorted(tag.removeprefix(TABLE_TAG) for tag in missed))
    report(
        mode,
        prop,
        f'{prop.where} read {tables}, which its policy '
        f'{as_written(prop.declaration.cache_policy)} does not mention: a change is not seen',
    )


def report(mode: str, prop: Property, message: str) -> None:
    """Report what an audit has found about a property; a warning is logged once.

    :param mode: the setting ``audit``.
    :raises AuditError: if the mode is ``'error'``.
    """
    if mode == 'error':
        raise AuditError(message)
    if mode == 'warn':
        log_once(prop, message)


def report_size(settings: OrmCacheSettings, prop: Property, encoded: Encoded) -> bool:
    """Return whether a value is small enough to be stored.

    Log, once, if it is not, or if it is larger than the whole process tier. A process tier without
    any room is taken for intended, and nothing is logged.
    """
    if len(encoded.data) > settings.max_value_size:
        log_once(
            prop,
            f'{prop.where} has a value of {len(encoded.data):,} bytes, more than '
            f'max_value_size={settings.max_value_size:,}: it is not stored, and each request '
            'computes it. Make the setting larger, or the value smaller',
            subject='size',
        )
        return False
    size = settings.process_cache_size
    is_shared = encoded.immutable or prop.declaration.frozen
    if not size or bytes_taken(encoded, is_shared) <= size:
        return True
    if settings.redis_url is None and bytes_taken(encoded, is_shared=False) > size:
        effect = 'it is not stored, and each request computes it'
    else:
        effect = 'this process does not keep it, and each request fetches and decodes it'
    log_once(
        prop,
        f'{prop.where} has a value of {len(encoded.data):,} bytes, which does not fit into '
        f'process_cache_size={size:,}: {effect}. Make the setting larger, or the value smaller',
        subject='size',
    )
    return True


def report_expired(prop: Property) -> None:
    """Log, once, that a value had expired when it was computed."""
    log_once(
        prop,
        f'{prop.where} is not stored: its value, or one that it was made of, had expired when it '
        'was computed (expires); each request computes it',
        subject='expires',
    )


def report_undecodable(prop: Property, error: Exception) -> None:
    """Log, once, that a stored value of a property could not be decoded, and is computed anew."""
    message = f'{prop.where}: a stored value can not be used and is computed anew: {error!r:.500}'
    log_once(prop, message, subject='undecodable')


def refuse_cycle(runs: Sequence[Run], call: Call) -> None:
    """Raise :class:`CircularPropertyError` if the property's creator is running already, with the
    same arguments."""
    if any(call.key in run.keys for run in runs):
        way = ' -> '.join([*(run.prop.name for run in runs), call.prop.name])
        raise CircularPropertyError(f'{call.prop.where}: the property reads itself: {way}')


def refuse_variant(mode: str, run: Run, prop: Property) -> None:
    """Raise :class:`VariantError`: a run's property does not vary by all that ``prop`` does.

    Its value would show the variant of one user to others. A response is only not stored, because
    the view may be older than its option ``cached``.

    :param mode: the setting ``audit``; with ``'error'``, it is an error of a response, too.
    """
    message = (
        f'{run.prop.where} reads {prop.where}, which differs by role or vary, but does not differ '
        "by them itself, so one user's value would be shown to another; declare it with the same "
        'by_role and vary'
    )
    if not run.prop.declaration.is_response or mode == 'error':
        raise VariantError(message)
    run.taint(message)


def log_once(prop: Property, message: str, subject: str | None = None) -> None:
    """Log a message about a property, unless one of the same subject was logged.

    :param subject: what it is about; by default the whole message.
    """
    subject = subject or message
    if subject not in prop.logged:
        prop.logged.add(subject)
        log.warning('%s', message)
