"""The commands that look, evict and check: what they print, and their exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from onegov_ormcache.statistics.results import PropertyStatistics, TenantStatistics
from onegov_ormcache.tools import cli_stats
from onegov_ormcache.tools.inspection import server_checks
from onegov_ormcache.tools.showing import Screen
from tests.support.applications import change, value
from tests.support.models import User
from tests.support.outside import outside
from tests.support.servers import RedisServer
from tests.support.wires import Wire
from tests.tools.cli_town import Town, fresh
from tests.tools.conftest import APP, Run

ROOT = Path(__file__).parent.parent.parent
COMMAND = [sys.executable, '-m', 'onegov_ormcache']

#: The settings of an application, changed by keyword arguments.
Environment = Callable[..., dict[str, Any]]


@pytest.fixture
def redis_options(servers_backend: Any) -> tuple[str, ...]:
    """The options that name the namespace on Redis, without an application."""
    settings = servers_backend.settings
    return '--redis-url', settings['redis_url'], '--namespace', settings['namespace']


def valid(cli: Run, tenant: str) -> set[str]:
    """The short names of the properties whose values are valid, as the command says."""
    found = cli('values', '--app', APP, '--tenant', tenant, '--json').json['values']
    return {each['where'].rpartition('.')[2] for each in found if each['is_valid']}


ALL = {'names', 'name', 'found'}


# looking


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


# evicting


@pytest.fixture
def answer(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Answers the next question of a command; an empty answer is the end of the input."""

    def give(text: str) -> None:
        read, write = os.pipe()
        os.write(write, text.encode())
        os.close(write)
        monkeypatch.setattr(sys, 'stdin', os.fdopen(read))

    return give


def test_evict_asks_first(
    cli: Run, used: Town, tenant: str, answer: Callable[[str], None]
) -> None:
    """Nothing is evicted unless the question is answered with yes."""
    for text, expected in ('', 'or give --yes'), ('n\n', 'nothing was evicted'):
        answer(text)
        code, out, err = cli('evict', '--app', APP, '--tenant', tenant)
        assert (code, out) == (2, '')
        assert expected in err
        assert f'Evict everything of {tenant}' in err
        assert valid(cli, tenant) == ALL
    answer('y\n')
    assert cli('evict', '--app', APP, '--tenant', tenant)[:2] == (0, f'{tenant}: evicted\n')
    assert valid(cli, tenant) == set()


@pytest.mark.parametrize('number', [signal.SIGINT, signal.SIGTERM])
def test_question_that_is_interrupted(used: Town, tenant: str, number: signal.Signals) -> None:
    """Ctrl-C instead of an answer has the exit code of Ctrl-C, and evicts nothing."""
    process = subprocess.Popen(
        [*COMMAND, 'evict', '--app', APP, '--all'], cwd=ROOT, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding='utf-8',
    )  # fmt: skip
    assert process.stderr is not None
    try:
        asked = ''
        while not asked.endswith('[y/N]: '):
            character = process.stderr.read(1)
            assert character
            asked += character
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
        process.communicate()
    assert (process.returncode, out) == (130, '')
    assert err.split() == ['interrupted']


def test_evict(cli: Run, used: Town, tenant: str, redis_options: tuple[str, ...]) -> None:
    """What was named is evicted, and no more."""
    own = '--app', APP, '--tenant', tenant, '--yes'

    def left(*arguments: str) -> set[str]:
        assert cli('evict', *arguments).code == 0
        found = valid(cli, tenant)
        value(used, tenant, lambda a: (a.names, a.name(1), a.found('peace')))
        assert valid(cli, tenant) == ALL
        return found

    assert left(*own, 'names') == {'name', 'found'}
    assert left(*own, 'name', '1') == {'names', 'found'}
    assert left(*own, 'found', 'peace') == {'names', 'name'}
    assert left(*own, '--table', 'users') == set()
    assert left(*own, '--table', 'groups') == ALL
    assert left(*own) == set()
    assert left('--app', APP, '--all', '--yes') == set()
    assert left(*redis_options, '--tenant', tenant, '--yes', '--table', 'users') == set()
    assert left(*redis_options, '--all', '--yes') == set()


@pytest.mark.parametrize(
    ('arguments', 'expected'),
    [
        (['--all', '--yes', 'nmaes'], 'did you mean'),
        (['--all', '--yes', 'name', 'x'], "'x' is no int, which the argument id is"),
        (['--all', '--yes', 'names', '1'], 'is called as ()'),
        (['--all', '--yes', '--table', 'user'], "did you mean 'users'"),
        (['--tenant', 'nowhere', '--yes'], "no tenant 'nowhere'"),
        (['--yes'], 'Name the tenants by --tenant, or give --all'),
        (['--all', '--tenant', 'x'], 'Name the tenants by --tenant, or give --all'),
        (['--all', '--table', 'users', 'names'], 'Give a PROPERTY or --table'),
    ],
)
def test_wrong_evictions(
    cli: Run, used: Town, tenant: str, arguments: list[str], expected: str
) -> None:
    """A wrong tenant, property, argument or table is told, and nothing is evicted."""
    code, out, err = cli('evict', '--app', APP, *arguments)
    assert (code, out) == (2, '')
    assert expected in err
    assert valid(cli, tenant) == ALL


# checking


def findings(cli: Run, *arguments: str) -> dict[str, str]:
    """The findings of a check: severities and texts, by what they are about."""
    done = cli('check', '--json', *arguments)
    found = done.json['findings']
    is_bad = any(each['severity'] != 'note' for each in found)
    assert done.code == (1 if is_bad else 0)
    texts: dict[str, str] = {}
    for each in found:
        subject = each['subject'].rpartition('.')[2]
        texts[subject] = texts.get(subject, '') + f'{each["severity"]}: {each["text"]}\n'
    return texts


def test_check(cli: Run, used: Town) -> None:
    """A policy that names nothing is found, and nothing that is right."""
    found = findings(cli, '--app', APP)
    assert found.pop('forgotten').startswith('error: its policy names nothing')
    assert all(text.startswith('note: ') for text in found.values()), found
    code, out, _ = cli('check', '--app', APP)
    assert code == 1
    assert '1 error, 0 warnings' in out


def test_check_runs_creators(cli: Run, used: Town, tenant: str) -> None:
    """With --run, creators are run, and what the audit finds of them is a finding."""
    found = findings(cli, '--app', APP, '--run', tenant)
    assert 'read documents, which its policy' in found['careless']
    assert 'is not stored' in found['never']
    assert 'names' not in found
    assert valid(cli, tenant) == ALL
    code, _, err = cli('check', '--app', APP, '--run', tenant + 'x')
    assert code == 2
    assert f'did you mean {tenant!r}' in err


def test_check_finds_what_is_always_missed(cli: Run, used: Town, tenant: str) -> None:
    """A property that is read often and never a hit is found by what was counted, and why."""
    for _ in range(20):
        value(used, tenant, lambda a: a.never)
    used.orm_cache.statistics.flush()
    found = findings(cli, '--app', APP)['never']
    assert found.startswith('warning: none of 20 reads was a hit: its values are not stored')


def test_check_of_a_wrong_configuration(cli: Run, environment: Environment) -> None:
    """An application that can't be set up is a finding: a wrong policy, a wrong setting."""
    environment()
    found = findings(cli, '--app', 'tests.tools.cli_town:Wrong')
    assert "names the table 'usrs'" in found['configuration']
    environment(audit='maybe')
    assert 'orm_cache.audit' in findings(cli, '--app', APP)['configuration']


def test_check_of_servers_that_are_away(
    cli: Run, environment: Environment, tmp_path: Path
) -> None:
    """Servers that can't be reached are findings, without a password."""
    environment(
        redis_url='redis://:hush@127.0.0.1:1/0', dsn='postgresql+psycopg://u:hush@127.0.0.1:1/x'
    )
    found = findings(cli, '--app', APP)
    assert found['redis_url'].startswith('error: Redis')
    assert found['dsn'].startswith('error: dsn')


def test_check_of_a_redis_that_is_no_cache(
    cli: Run, environment: Environment, own_redis: RedisServer
) -> None:
    """A Redis that refuses values when it is full is found."""
    environment(redis_url=own_redis.url)
    with own_redis.client() as client:
        client.config_set('maxmemory', '100mb')
        client.config_set('maxmemory-policy', 'noeviction')
    assert findings(cli, '--app', APP)['redis_url'].startswith('warning: Redis: it refuses')


def test_check_of_triggers(cli: Run, environment: Environment, used: Town, tenant: str) -> None:
    """An application that listens, and whose tenant has no triggers, is found."""
    environment(listen=True)
    found = [each['text'] for each in cli('check', '--app', APP, '--json').json['findings']
             if each['subject'] == 'listen']  # fmt: skip
    assert any(f'{tenant}: no current triggers on ' in text for text in found)


def test_check_of_the_memory_store(cli: Run, environment: Environment, tmp_path: Path) -> None:
    """The embedded default can be checked, as in CI; what it is not fit for is a note."""
    environment(redis_url=None, dsn=f'sqlite:///{tmp_path}/tenants')
    assert findings(cli, '--app', APP)['redis_url'].startswith('note: ')


@pytest.mark.parametrize(('seconds', 'side'), [(5.0, 'ahead of'), (-5.0, 'behind')])
def test_clocks(seconds: float, side: str) -> None:
    """A clock that differs is a warning that says how; one that does not is none."""
    now = server_checks.time.time
    (found,) = server_checks._check_clock('Redis', lambda: now() + seconds)
    assert f's {side} that of this host' in found.text
    assert list(server_checks._check_clock('Redis', now)) == []


# applications, and what is none


@pytest.mark.parametrize(
    'attribute',
    ['fresh', 'fresh()', 'make', 'make()', 'Wrapped', 'Wrapped()', 'make_cache', 'make_holder'],
)
def test_applications(cli: Run, used: Town, tenant: str, attribute: str) -> None:
    """An app, a WSGI application around one, a cache, its holder, or a function that makes one."""
    done = cli('tags', '--app', f'tests.tools.cli_town:{attribute}', '--json')
    if attribute == 'Wrapped':
        assert done.code == 2
        return
    assert done.code == 0
    assert list(done.json['tenants']) == [tenant]
    assert 'an application may print' not in done.out


def test_application_of_the_environment(
    cli: Run, used: Town, tenant: str, monkeypatch: pytest.MonkeyPatch,
    redis_options: tuple[str, ...],
) -> None:  # fmt: skip
    """The variable names the application; an option for Redis goes before it."""
    monkeypatch.setenv('ONEGOV_ORMCACHE_APP', APP)
    assert tenant in cli('tags').out
    assert cli('values', *redis_options, '--json').json['values'][0]['where'] is None
    monkeypatch.delenv('ONEGOV_ORMCACHE_APP')
    monkeypatch.setenv('ONEGOV_ORMCACHE_REDIS_URL', redis_options[1])
    assert tenant in cli('tags', '--namespace', redis_options[3]).out
    code, _, err = cli('tags')  # the default namespace
    assert code == 2 or tenant not in err
    assert cli('tags', '--app', APP, '--redis-url', redis_options[1]).code == 2


@pytest.mark.parametrize(
    ('path', 'expected'),
    [
        ('nonsense', "'nonsense' is no path of an application"),
        ('', 'Name the application'),
        ('nowhere:app', "no module 'nowhere'"),
        ('tests.nowhere:app', "no module 'tests.nowhere'"),
        ('tests.tools.cli_town:frsh', "did you mean 'fresh'"),
        ('tests.tools.cli_town:Town.nothing', "has no 'nothing'"),
        ('tests.tools.cli_town:nothing', 'expected an OrmCacheApp'),
        ('tests.tools.cli_town:Base', 'none of applications'),
        ('tests.tools.broken:app', 'ZeroDivisionError: division by zero (/'),
        ('tests.tools.broken:leave', 'ZeroDivisionError'),
    ],
)
def test_what_is_no_application(
    cli: Run, environment: Environment, path: str, expected: str
) -> None:
    """A path that leads to no application is one line that says what is wrong."""
    environment()
    for command in 'tags', 'check', 'outbox':
        code, out, err = cli(command, '--app', path)
        assert (code, out) == (2, '')
        assert expected in err


def test_secrets_of_an_application(cli: Run, environment: Environment) -> None:
    """An error of the application that has a password is shown without it; see the fixture."""
    environment()
    for attribute in 'raises', 'also_raises', 'proxy', 'variable':
        code, _, err = cli('tags', '--app', f'tests.tools.secretive:{attribute}')
        assert code == 2
        assert '***' in err


@pytest.mark.parametrize('arguments', [['check'], ['tags'], ['check', '--json']])
def test_application_that_ends_the_program(
    cli: Run, environment: Environment, arguments: list[str]
) -> None:
    """An application that exits does not make a command a success that was not carried out."""
    environment()
    code, out, err = cli(*arguments, '--app', 'tests.tools.secretive:Ending')
    assert (code, out) == (2, '')
    assert 'the application has ended this program: 0' in err


@pytest.mark.parametrize('command', ['stats', 'tags', 'values', 'outbox', 'evict', 'explain'])
def test_memory_of_another_process(
    cli: Run, environment: Environment, tmp_path: Path, command: str
) -> None:
    """An application on the embedded default can't be looked at from outside, used or not."""
    environment(redis_url=None, dsn=f'sqlite:///{tmp_path}/tenants')
    arguments = {'evict': ['--all'], 'explain': ['names']}.get(command, [])

    def refused() -> None:
        for attribute in 'fresh', 'make':
            path = f'tests.tools.cli_town:{attribute}'
            code, out, err = cli(command, '--app', path, *arguments)
            assert (code, out) == (2, '')
            assert 'memory of its own process' in err

    refused()
    from tests.tools.cli_town import fresh

    app = fresh()
    app.setup_orm_cache()
    refused()
    app.close_orm_cache()


# servers that are away, and output that nobody reads


def test_what_is_no_text(cli: Run, used: Town, redis_options: tuple[str, ...]) -> None:
    """Bytes that are no UTF-8 are one line that says so, wherever they stand; nothing is
    evicted."""
    wrong = os.fsdecode(b'hush\xff')
    for arguments in (
        ['values', *redis_options, '--decode', wrong],
        ['stats', '--redis-url', f'redis://:{wrong}@127.0.0.1:1/0'],
        ['outbox', '--dsn', f'postgresql+psycopg://me:{wrong}@127.0.0.1:1/db'],
        ['evict', *redis_options, '--all', '--yes', '--table', wrong],
        ['evict', '--app', APP, '--all', '--yes', 'found', wrong],
    ):
        code, out, err = cli(*arguments)
        assert (code, out) == (2, '')
        assert 'is no UTF-8' in err


def test_variable_that_is_no_text(cli: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """So are those of an environment variable."""
    wrong = os.fsdecode(b'postgresql+psycopg://me:hush\xff@127.0.0.1:1/db')
    monkeypatch.setenv('ONEGOV_ORMCACHE_DSN', wrong)
    code, out, err = cli('outbox')
    assert (code, out) == (2, '')
    assert 'is no UTF-8' in err


def test_a_redis_that_is_away(cli: Run) -> None:
    """A wrong address is one line, for each command that takes it."""
    options = '--redis-url', 'redis://:hush@127.0.0.1:1/0'
    for arguments in ['stats'], ['stats', '--watch'], ['tags'], ['values'], ['evict', '--all']:
        code, out, err = cli(*arguments, *options)
        assert (code, out) == (2, '')
        assert err.startswith('error: Redis')
        assert err.count('\n') == 1


def test_a_redis_that_stalls(cli: Run, own_redis: RedisServer) -> None:
    """A Redis that takes connections and does not answer is an error, too, and no wait."""
    own_redis.pause()
    try:
        for command in ['stats'], ['tags'], ['values'], ['evict', '--all']:
            code, _, err = cli(*command, '--redis-url', own_redis.url)
            assert code == 2
            assert err.startswith('error: Redis')
    finally:
        own_redis.resume()


def test_a_namespace_that_nobody_uses(
    cli: Run, used: Town, redis_options: tuple[str, ...]
) -> None:
    """A wrong namespace is told, with those that there are."""
    for command in 'tags', 'values':
        code, out, err = cli(command, *redis_options[:2], '--namespace', 'nobody')
        assert (code, out) == (2, '')
        assert "nothing is known of any tenant in the namespace 'nobody'" in err
    assert cli('tags', *redis_options[:2], '--namespace', 'a b').code == 2


@pytest.mark.parametrize('command', ['tags', 'values', 'stats'])
def test_broken_pipe(used: Town, command: str) -> None:
    """A command whose output nobody reads ends in silence."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [*COMMAND, command, '--app', APP], cwd=ROOT, stdout=write, stderr=subprocess.PIPE,
        text=True, check=False,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == 141
    assert 'rror' not in done.stderr


@pytest.mark.parametrize('command', [['tags'], ['tags', '--json'], ['check'], ['--help']])
def test_output_without_room(used: Town, command: list[str]) -> None:
    """A full disk is one line, and not the exit code of something that was found."""
    options = [] if command == ['--help'] else ['--app', APP]
    with Path('/dev/full').open('w') as full:
        done = subprocess.run(
            [*COMMAND, *command, *options], cwd=ROOT, stdout=full, stderr=subprocess.PIPE,
            encoding='utf-8',
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith('error: [Errno 28]')
    assert 'Traceback' not in done.stderr


def test_closed_output(used: Town) -> None:
    """Where nobody has a standard output, a command works all the same."""
    program = 'import os, sys; os.close(1); os.execv(sys.executable, sys.argv[1:])'
    done = subprocess.run(
        [sys.executable, '-c', program, *COMMAND, 'tags', '--app', APP],
        cwd=ROOT, stderr=subprocess.PIPE, encoding='utf-8',
    )  # fmt: skip
    assert done.returncode == 0
    assert 'Traceback' not in done.stderr


def test_ascii_terminal(used: Town) -> None:
    """A terminal that knows ASCII alone is no error."""
    environment = {**os.environ, 'PYTHONIOENCODING': 'ascii', 'LC_ALL': 'C', 'PYTHONUTF8': '0'}
    done = subprocess.run(
        [*COMMAND, 'tags', '--app', APP], cwd=ROOT, capture_output=True, env=environment,
        check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert done.stdout.isascii()


def test_class_as_an_application(used: Town, tenant: str) -> None:
    """The class of an application is enough, and a module of the working directory."""
    folder = ROOT / 'tests' / 'tools'
    environment = {**os.environ, 'PYTHONPATH': str(ROOT)}
    done = subprocess.run(
        [*COMMAND, 'tags', '--app', 'cli_town:Town', '--json'], cwd=folder, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert list(json.loads(done.stdout)['tenants']) == [tenant]
    assert 'an application may print' in done.stderr


def test_change_is_seen(cli: Run, used: Town, tenant: str) -> None:
    """A value that a commit has evicted is not valid any more, and it is said which tag did it."""
    change(used, tenant, User(name='Bea'))
    code, out, _ = cli('values', '--app', APP, '--property', 'names')
    assert code == 0
    assert '0 valid' in out
    assert 'no, changed: table:users' in out


def test_version_and_help(cli: Run) -> None:
    """The version, and the help of each command."""
    assert cli('--version').out.count('.') >= 1
    for command in 'stats', 'tags', 'values', 'explain', 'evict', 'outbox', 'check':
        code, out, _ = cli(command, '--help')
        assert code == 0
        assert out.startswith('Usage: ')
    for arguments, command in ((), ''), (('stat',), ''), (('stats', '--no'), ' stats'):
        assert f"onegov_ormcache{command} --help' for help.\nerror: " in cli(*arguments).err
