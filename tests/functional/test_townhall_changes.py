"""The town hall's next visitor sees each change, and nothing of a change that failed."""

from __future__ import annotations

import logging

import pytest

from tests.functional.visitors import CHANGES, TownHall

#: Requests that change something, and then fail: with their status.
FAILURES: dict[str, tuple[str, dict[str, str] | str, str | None, int]] = {
    'forbidden': ('/pages/5/rename', {'title': 'X'}, 'member', 403),
    'not logged in': ('/tickets/close-all', {}, None, 403),
    'raised 400': ('/pages/5/rename', {'title': ' '}, 'editor', 400),
    'returned 400': ('/pages/2/import', '7;One\n8;', 'editor', 400),
    'raised 409 after a flush': ('/pages/2/move', {'parent': '5'}, 'editor', 409),
    'refused by the database': (
        '/users',
        {'login': 'admin', 'name': 'X', 'role': 'admin'},
        'editor',
        409,
    ),
    'unexpected error after a flush': ('/pages/2/import', '7;One\nx;Two', 'editor', 500),
    'no such page': ('/pages/999/rename', {'title': 'X'}, 'editor', 404),
}


# changes


@pytest.mark.parametrize('change', CHANGES)
def test_change_is_seen_by_the_next_request(hall: TownHall, change: str) -> None:
    """After a change, all views show at once what is in the database, to every role."""
    path, form = CHANGES[change]
    before = hall.everything()
    assert hall.computed() == set()
    hall.post(path, form)
    after = hall.everything()
    assert after != before
    assert hall.fresh() == after


@pytest.mark.parametrize('change', ['rename a page', 'close all tickets', 'join a department'])
def test_change_leaves_what_does_not_depend_on_it(hall: TownHall, change: str) -> None:
    """A change evicts what depends on its tables, and nothing else."""
    hall.everything()
    hall.post(*CHANGES[change])
    dependent = {
        'rename a page': {'page', 'page_tree', 'search', 'visible_documents', 'latest_news'},
        # a statement without objects is beyond a policy that is a function
        'close all tickets': {
            *('open_tickets', 'unassigned_tickets', 'workload', 'summary', 'secret_documents'),
            'tickets_of',
        },
        # both sides of the relationship count as changed
        'join a department': {
            *('departments', 'summary', 'roles', 'secret_documents', 'user_names', 'workload'),
        },
    }
    assert hall.computed() == dependent[change]


def test_function_policy_looks_at_the_object(hall: TownHall) -> None:
    """A policy that is a function evicts for objects that it is about, before or after."""
    evicts = {}
    for path in '/documents/1/rename', '/documents/2/rename', '/documents/2/publish':
        hall.everything()
        hall.post(path, {'title': 'Changed'})
        evicts[path] = 'secret_documents' in hall.computed()
    assert evicts == {
        '/documents/1/rename': False,
        '/documents/2/rename': True,
        '/documents/2/publish': True,
    }


def test_changing_request_sees_its_own_change(hall: TownHall) -> None:
    """A view that changes something reads it changed, before the commit."""
    assert hall.get('/tickets')['open'] == 4
    assert hall.post('/tickets/1/close', {}).json == {'open': 3}
    assert hall.post('/tickets/close-all', {}).json == {'open': 0}
    assert 'Roads' in hall.get('/users')['departments']
    joined = hall.post('/users/3/join', {'department': 'Roads'}).json
    assert 'Member of Reykjavík' in joined['departments']['Roads']
    assert hall.post('/documents/1/hide', {}).json == {
        'secret': ['Constitution', 'Map of Region of Akureyri', 'Plan for emergencies']
    }


# what fails


@pytest.mark.parametrize('failure', FAILURES)
def test_failed_change_leaves_nothing(
    hall: TownHall, failure: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that fails is rolled back, changes no view, and evicts nothing."""
    caplog.set_level(logging.CRITICAL, 'townhall')
    path, form, user, status = FAILURES[failure]
    before = hall.everything()
    with hall.application.app.recording() as events:
        hall.post(path, form, user, status)
    assert [event for event in events if event.kind == 'commit'] == []
    assert hall.computed() == set()
    assert hall.everything() == before
    assert hall.fresh() == before


def test_unexpected_error_is_logged_and_answered(
    hall: TownHall, caplog: pytest.LogCaptureFixture
) -> None:
    """The application's view for exceptions answers, and the log has the reason."""
    response = hall.post('/pages/2/import', 'x;Title', status=500)
    assert response.json == {'error': 'something went wrong'}
    [record] = [record for record in caplog.records if record.name == 'townhall']
    assert record.exc_info
    assert isinstance(record.exc_info[1], ValueError)
