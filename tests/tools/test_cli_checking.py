"""The command check: what it finds, and what it does not accuse."""

from __future__ import annotations

from pathlib import Path

import pytest

from onegov_ormcache.tools.inspection import server_checks
from tests.support.applications import value
from tests.support.servers import RedisServer
from tests.tools.cli_town import Town
from tests.tools.conftest import ALL, APP, Environment, Run, valid


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
