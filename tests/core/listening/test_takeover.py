"""One of several listeners is active, and when it ends another takes over."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.core.listening.listening_town import (
    TAKEN_OVER,
    Program,
    Town,
    active_listeners,
    becomes,
    ear_of,
    listening,
    reads,
)
from tests.support.applications import Applications
from tests.support.forking import FORKS
from tests.support.outside import until

ROOT = Path(__file__).parent.parent.parent.parent


def test_one_of_several_is_active(
    app: Town, apps: Applications, program: Program, tenant: str, namespace: str
) -> None:
    """Of several listeners one publishes; when it ends, another sees what comes then."""
    other = apps.again(type(app))
    assert reads(other, tenant, 'names') == ['Ada']
    assert len(active_listeners(program, namespace)) == 1
    assert not ear_of(other).is_active
    app.close_orm_cache()
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(other, tenant, 'names', ['Grace'])
    assert ear_of(other).is_active


def test_takeover_when_the_connection_is_ended(
    app: Town, apps: Applications, program: Program, tenant: str, namespace: str
) -> None:
    """When the active listener's connection is ended, one is active again soon."""
    other = apps.again(type(app))
    assert reads(other, tenant, 'names') == ['Ada']
    (before,) = active_listeners(program, namespace)
    program.execute('SELECT pg_terminate_backend(%s)', [before])
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(other, tenant, 'names', ['Grace'])
    (after,) = active_listeners(program, namespace)
    assert after != before
    # the one whose connection was ended may be the last to hear of it
    until(lambda: ear_of(app).is_active != ear_of(other).is_active, TAKEN_OVER)


def test_namespaces_listen_apart(app: Town, apps: Applications, program: Program) -> None:
    """Applications that share no tag store do not wait for each other."""
    listening(apps.start(Town, listen=True, namespace='another'))
    assert ear_of(app).is_active


SCRIPT = """
import os, sys
from tests.core.listening.listening_town import Town, ear_of, listening
from tests.support.forking import FORKS
from tests.support.outside import until
from tests.support.models import Base
from tests.support.outside import until

settings = {'base': Base, 'listen': True, **eval(sys.argv[1])}
Town.setting_section(section='orm_cache')(lambda: settings)
app = Town()
app.setup_orm_cache()
listening(app)
if sys.argv[2] in FORKS and FORKS[sys.argv[2]]() == 0:
    app.request_scope(sys.argv[3]).__enter__()
    assert not ear_of(app).is_active
    until(lambda: ear_of(app).is_active, 60)
    print('child', flush=True)
else:
    print('parent', flush=True)
sys.stdin.read()
"""


@contextmanager
def another_process(settings: dict[str, Any], *how: str) -> Iterator[subprocess.Popen[str]]:
    """A process that listens, and is the active one."""
    process = subprocess.Popen(
        [sys.executable, '-c', SCRIPT, repr(settings), *how],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == 'parent\n'
        yield process


def test_takeover_when_the_process_is_killed(
    apps: Applications, program: Program, tenant: str
) -> None:
    """When the process that listens is killed, the next one sees what comes then."""
    with another_process(apps.backend.settings, 'alone') as process:
        app = apps.start(Town, listen=True)
        assert reads(app, tenant, 'names') == ['Ada']
        assert not ear_of(app).is_active
        process.kill()
        program.execute("UPDATE users SET name = 'Grace'")
        becomes(app, tenant, 'names', ['Grace'])


@pytest.mark.parametrize('kind', FORKS)
def test_forked_process_listens_itself(
    apps: Applications, program: Program, tenant: str, kind: str
) -> None:
    """A fork has a listener of its own from its first scope on, which takes over when the parent
    is killed: it does not keep the parent's connection open."""
    with another_process(apps.backend.settings, kind, tenant) as process:
        app = apps.start(Town)
        assert reads(app, tenant, 'names') == ['Ada']
        process.kill()
        assert process.stdout is not None
        assert process.stdout.readline() == 'child\n'
        program.execute("UPDATE users SET name = 'Grace'")
        becomes(app, tenant, 'names', ['Grace'])


def test_fork_leaves_the_parents_connection_alone(
    app: Town, program: Program, tenant: str, namespace: str
) -> None:
    """The parent hears on while a fork lives, and after it has ended."""
    assert reads(app, tenant, 'names') == ['Ada']
    before = active_listeners(program, namespace)
    child = os.fork()
    if child == 0:
        signal.alarm(20)
        ear_of(app).close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    program.execute("UPDATE users SET name = 'Grace'")
    becomes(app, tenant, 'names', ['Grace'])
    assert active_listeners(program, namespace) == before
