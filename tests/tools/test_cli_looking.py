"""The commands that look: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from onegov_ormcache.statistics.results import PropertyStatistics, TenantStatistics
from onegov_ormcache.tools import cli_stats
from onegov_ormcache.tools.showing import Screen
from tests.support.applications import value
from tests.support.outside import outside
from tests.support.servers import RedisServer
from tests.support.wires import Wire
from tests.tools.cli_town import Town, fresh
from tests.tools.conftest import ALL, APP, COMMAND, ROOT, Environment, Run, valid


def test_tags(cli: Run, used: Town, tenant: str, redis_options: tuple[str, ...]) -> None:
    """There is a line for each tenant, or one for each tag of one tenant."""
    for options in ('--app', APP), redis_options:
        code, out, err = cli('tags', *options)
        assert (code, err) == (0, '' if options is redis_options else err)
        assert tenant in out
        code, out, _ = cli('tags', *options, '--tenant', tenant)
        assert code == 0
        assert 'table:users' in out
        (found,) = cli('tags', *options, '--json').json['tenants'].values()
        assert found['tenant'] == tenant
        (users,) = [tag for tag in found['tags'] if tag['name'] == 'table:users']
        assert users['changes'] == 1
        assert users['last_change'] > 0
        assert not users['is_in_doubt']


def test_values(cli: Run, used: Town, tenant: str, redis_options: tuple[str, ...]) -> None:
    """Values are shown with their property, or without an application with their key."""
    assert valid(cli, tenant) == ALL
    code, out, _ = cli('values', '--app', APP, '--tenant', tenant)
    assert code == 0
    assert '3 values, 3 valid' in out
    code, out, _ = cli('values', '--app', APP, '--property', 'name')  # the only tenant
    assert '1 value, 1 valid' in out
    code, out, err = cli('values', *redis_options)
    assert (code, err) == (0, '')
    assert "found('peace')" in out
    assert cli('values', *redis_options, '--limit', '1', '--json').json['is_cut']


def test_one_value(cli: Run, used: Town, redis_options: tuple[str, ...]) -> None:
    """A value is decoded; the end of its key is enough, if no other key ends like it."""
    for options in ('--app', APP), redis_options:
        assert cli('values', *options, '--decode', 'Town.names').out == "['Ada']\n"
        assert cli('values', *options, '--decode', 'names', '--json').json['text'] == "['Ada']"
        code, out, err = cli('values', *options, '--decode', 'nothing')
        assert (code, out) == (2, '')
        assert 'there is no value' in err
    assert '2 keys end with' in cli('values', '--app', APP, '--decode', ')').err


def test_control_characters(cli: Run, used: Town, tenant: str) -> None:
    """What keys and values have in them does not control the terminal; see the fixture."""
    value(used, tenant, lambda a: a.found('\x1b[31mred\x1b]0;title\x07\u202e'))
    code, out, _ = cli('values', '--app', APP)
    assert code == 0
    assert '\\x1b[31mred' in out
    (key,) = (
        each['key']
        for each in cli('values', '--app', APP, '--json').json['values']
        if 'red' in each['key']
    )
    assert '\\x1b[31m' in cli('values', '--app', APP, '--decode', key).out
    # a key that another program has made, which is not the repr of anything
    stored = used.orm_cache.shared_tier.get(tenant, key)
    assert stored is not None
    assert used.orm_cache.shared_tier.fill(tenant, 'other\x1b[2J\u202e\n', stored)
    assert 'other\\x1b[2J\\u202e\\n' in cli('values', '--app', APP).out
    assert 'no value' in cli('values', '--app', APP, '--decode', 'x\x1b[2J').err


def test_stats(cli: Run, used: Town, tenant: str, redis_options: tuple[str, ...]) -> None:
    """The numbers of all processes are shown, with and without an application."""
    for options in ('--app', APP), redis_options:
        code, out, _ = cli('stats', *options)
        assert code == 0
        assert tenant in out
        (found,) = cli('stats', *options, '--json').json['tenants']
        names = found['properties']['tests.tools.cli_town.Town.names']
        assert (names['misses'], names['process_hits'], names['gets']) == (1, 2, 3)
        assert names['hit_rate'] == pytest.approx(2 / 3)
        assert names['last_run']['why_not_stored'] == ''
    assert 'did you mean' in cli('stats', '--app', APP, '--tenant', tenant + 'x').err
    assert cli('stats', '--app', APP, '--watch', '--json').code == 2
    for interval in 'nan', 'inf', '0':
        code, out, err = cli('stats', '--app', APP, '--watch', '--interval', interval)
        assert (code, out) == (2, '')
        assert '--interval' in err


def test_program_itself_is_no_application(used: Town) -> None:
    """The module that has no specification, as a script has none, is looked at like any other."""
    program = 'import sys; from onegov_ormcache.__main__ import main; sys.exit(main())'
    done = subprocess.run(
        [sys.executable, '-c', program, 'check', '--app', '__main__:app'],
        cwd=ROOT, capture_output=True, encoding='utf-8',
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("error: the module '__main__' has no 'app'")


def test_nothing_is_counted_yet(cli: Run, redis_options: tuple[str, ...]) -> None:
    """Where no process has sent numbers, it is said when they come; for one tenant, too."""
    code, out, err = cli('stats', *redis_options)
    assert (code, 'statistics_interval' in out, err) == (0, True, '')
    code, out, err = cli('stats', *redis_options, '--tenant', 'main')
    assert (code, out, err.count('\n'), 'statistics_interval' in err) == (2, '', 1, True)


def test_reasons_that_mean_two_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that was not stored and a read that has passed by the cache are told apart, though
    their reasons have the same name."""
    monkeypatch.setenv('COLUMNS', '200')
    counted = PropertyStatistics(misses=3, refused={'doubt': 2}, bypasses={'doubt': 3})
    (made,) = cli_stats._tables([TenantStatistics('main', {'town.App.users': counted})])
    screen = Screen()
    with screen.console.capture() as capture:
        screen.show(made)
    assert ' doubt (2), not used: doubt (3) ' in capture.get()


def test_watching(used: Town, tenant: str) -> None:
    """Numbers are shown again and again, until Ctrl-C ends it without an error."""
    process = subprocess.Popen(
        [*COMMAND, 'stats', '--app', APP, '--watch', '--interval', '0.1'],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
        env={**os.environ, 'PYTHONIOENCODING': 'utf-8', 'FORCE_COLOR': '1'},
    )  # fmt: skip
    assert process.stdout is not None
    try:
        seen = 0
        for line in process.stdout:
            seen += tenant in line
            if seen == 2:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert seen == 2
    assert process.returncode == 0
    assert 'Traceback' not in errors


def test_watching_while_redis_is_away(
    cli: Run, environment: Environment, tenant: str, own_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """An outage is shown in the place of the numbers, which come back with Redis."""
    with Wire(own_redis.url) as wire:
        settings = environment(redis_url=wire.url)
        steps = iter([wire.cut, wire.mend])

        def sleep(seconds: float) -> None:
            step = next(steps, None)
            if step is None:
                raise KeyboardInterrupt
            step()

        monkeypatch.setattr(cli_stats, 'sleep', sleep)
        options = '--redis-url', wire.url, '--namespace', settings['namespace']
        code, out, _ = cli('stats', *options, '--watch')
        assert code == 0
        assert 'is the server up' in out


def test_watching_when_redis_has_lost_all(
    cli: Run, environment: Environment, tenant: str, own_redis: RedisServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """A tenant that is watched is waited for if Redis starts again without it."""
    environment(redis_url=own_redis.url)
    app = fresh()
    app.setup_orm_cache()
    value(app, tenant, lambda a: a.names)
    app.close_orm_cache()
    steps = iter([lambda: own_redis.restart(keep_data=False)])

    def sleep(seconds: float) -> None:
        step = next(steps, None)
        if step is None:
            raise KeyboardInterrupt
        step()

    monkeypatch.setattr(cli_stats, 'sleep', sleep)
    code, out, _ = cli('stats', '--app', APP, '--watch', '--tenant', tenant)
    assert code == 0
    assert 'names' in out
    assert 'Nothing was counted' in out or 'there is no tenant' in out


def test_explain(cli: Run, used: Town, tenant: str) -> None:
    """A property is explained: what it depends on, how it went, what evicted it last."""
    code, out, _ = cli('explain', '--app', APP, 'names')
    assert code == 0
    assert 'evicted by any change of users' in out
    assert '3, 66.7 % hits' in out
    assert ', by table:users' in out
    found = cli('explain', '--app', APP, 'Town.name', '--tenant', tenant, '--json').json
    assert found['differs_by'] == ['argument id']
    assert found['tenants'][0]['valid'] == 1
    (tag,) = found['tenants'][0]['evicted']['tags']  # that of the row, when it was added
    assert tag.startswith('rows:users.id')


def test_explain_why_a_value_is_not_stored(cli: Run, used: Town, tenant: str) -> None:
    """The reason for which a value was not stored is told."""
    value(used, tenant, lambda a: a.never)
    used.orm_cache.statistics.flush()
    code, out, _ = cli('explain', '--app', APP, 'never')
    assert code == 0
    assert 'not stored: ' in out
    assert 'tainted (1)' in out
    assert '0 values' in out


def test_outbox(cli: Run, used: Town, tenant: str, postgres_dsn: str) -> None:
    """What lies in the outboxes is shown, with and without an application."""
    assert cli('outbox', '--app', APP).out == 'The outboxes are empty.\n'
    with outside(postgres_dsn, tenant) as connection:
        connection.execute(
            'CREATE TABLE orm_cache_outbox (id bigint GENERATED ALWAYS AS IDENTITY, '
            'namespace text, message text)'
        )
        message = json.dumps({'tags': ['table:users'], 'known': []})
        connection.execute(
            'INSERT INTO orm_cache_outbox (namespace, message) VALUES (%s, %s)',
            ['another', message],
        )
    assert cli('outbox', '--app', APP).out == 'The outboxes are empty.\n'
    found = cli('outbox', '--dsn', postgres_dsn, '--json').json['outboxes']
    (own,) = [each for each in found if each['tenant'] == tenant]
    assert (own['namespace'], own['messages'], own['age']) == ('another', 1, None)
    assert own['tags'] == ['table:users']
    code, out, _ = cli('outbox', '--dsn', postgres_dsn, '--namespace', 'another')
    assert code == 0
    assert 'table:users' in out
    with outside(postgres_dsn, tenant) as connection:
        connection.execute('ALTER TABLE orm_cache_outbox DROP COLUMN message')
    assert cli('outbox', '--dsn', postgres_dsn).code == 1
