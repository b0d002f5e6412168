"""The town hall's properties with arguments: which of their values a change evicts."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import pytest

from fixtures.townhall import Town, make_application
from fixtures.townhall.app import SEARCH_SIZE
from fixtures.townhall.models import Ticket
from tests.functional.visitors import TownHall
from tests.support.backends import Backend

Count = Callable[[int], AbstractContextManager[Any]]

#: Iceland's users, each with an open ticket or none.
HANDLERS = range(1, 7)

#: Seconds within which a value must have expired that lives for a moment.
PATIENCE = 20.0


def without_responses(backend: Backend) -> Backend:
    """A backend on which the views run each time, so that their properties are read."""
    return replace(backend, settings={**backend.settings, 'cached_responses': False})


@pytest.fixture
def backend(backend: Backend) -> Backend:
    """Each backend in turn, without cached responses."""
    return without_responses(backend)


# a page by its id


def test_one_renamed_page_is_one_run(hall: TownHall) -> None:
    """A renamed page is computed again, and the values of all other pages are used as before."""
    before, _ = found(hall, '')
    assert len(before) == 13
    assert found(hall, '') == (before, Counter(process=13))
    hall.post('/pages/5/rename', {'title': 'Smoky Bay'})
    after, tiers = found(hall, '')
    assert after == before | {5: 'Smoky Bay'}
    assert tiers == Counter(creator=1, process=12)


@pytest.mark.parametrize(
    ('path', 'form'),
    [('/pages/16/lead', {'lead': 'Changed'}), ('/pages/16/rename', {'title': 'Changed'})],
)
def test_row_in_two_tables_is_one_row(hall: TownHall, path: str, form: dict[str, str]) -> None:
    """A change of either table of a news evicts this news, and no other one."""
    ids = 1, 5, 14, 15, 16
    before = {id: hall.get(f'/pages/{id}') for id in ids}
    assert before[16]['lead'].startswith('They are ')
    hall.post(path, form)
    runs = {id: tiers_of(hall, 'page', f'/pages/{id}')['creator'] for id in ids}
    assert runs == {**dict.fromkeys(ids, 0), 16: 1}
    after = {id: hall.get(f'/pages/{id}') for id in ids}
    assert after == before | {
        1: after[1],  # it shows the titles of its children
        16: before[16] | form,
    }


def test_page_that_does_not_exist_yet(hall: TownHall) -> None:
    """That there is no page is a value too, which a page with this id evicts."""
    nothing = '/pages/17'
    for tier in 'creator', 'process':
        with hall.application.app.recording() as events:
            hall.visitor().get(nothing, status=404)
        assert [e.tier for e in events if e.name.endswith('.page')] == [tier]
    assert hall.post('/pages/2', {'title': 'New'}).json == {'id': 17}
    assert hall.get(nothing)['title'] == 'New'
    hall.post('/pages/17/delete', {})
    hall.visitor().get(nothing, status=404)


def test_deleted_page_takes_all_below_it_along(hall: TownHall) -> None:
    """The database deletes the pages below a page, so all values count as changed."""
    before, _ = found(hall, '')
    hall.post('/pages/2/delete', {})
    after, tiers = found(hall, '')
    gone = before.keys() - after.keys()
    assert {2, 5, 6} <= gone
    assert tiers == Counter(creator=len(after))


def test_found_pages_cost_one_round_trip(
    hall: TownHall, redis_ops: Count, db_queries: Count
) -> None:
    """In a process that has no values, all pages that are found come in one round trip."""
    for words, number in ('smoky', 1), ('', 13):
        if number == 1:
            hall.post('/pages/5/rename', {'title': 'Smoky Bay'})
        found(hall, words)
        hall.application.app.orm_cache.process_tier.of('').clear()
        # the versions; the roles, the tree, the ids and the pages
        with redis_ops(5), db_queries(0):
            pages, tiers = found(hall, words)
        assert len(pages) == number
        assert tiers == Counter(shared=number)


@pytest.fixture
def halls(
    servers_backend: Backend, make_tenant: Callable[[str], str]
) -> Iterator[tuple[TownHall, TownHall]]:
    """A town hall as two processes serve it, each with values of its own in memory."""
    prefix = make_tenant('x')[:-1]
    settings = without_responses(servers_backend).settings
    applications = [make_application(settings, prefix=prefix) for _ in range(2)]
    one, other = [TownHall(application, prefix) for application in applications]
    one.load('is')
    yield one, other
    for application in applications:
        application.app.close_orm_cache()


def test_another_process_computes_the_renamed_page_alone(
    halls: tuple[TownHall, TownHall]
) -> None:
    """A page that one process has renamed is computed once, by whoever reads it first; the others
    stay in the memory of each process."""
    one, other = halls
    before, _ = found(one, '')
    assert found(other, '') == (before, Counter(shared=13))
    one.post('/pages/5/rename', {'title': 'Smoky Bay'})
    assert found(other, '') == (before | {5: 'Smoky Bay'}, Counter(creator=1, process=12))
    assert found(one, '') == (before | {5: 'Smoky Bay'}, Counter(shared=1, process=12))


# a search


def test_search_finds_what_was_changed(hall: TownHall) -> None:
    """A change of any page evicts the results of all searches; without one they are kept."""
    assert search_runs(hall, 'reykjav') == search_runs(hall, 'smoky') == 1
    assert search_runs(hall, ' Reykjav ') == search_runs(hall, 'smoky') == 0
    hall.post('/pages/5/rename', {'title': 'Smoky Bay'})
    assert found(hall, 'smoky')[0] == {5: 'Smoky Bay'}
    assert 5 not in found(hall, 'reykjav')[0]
    hall.post('/tickets/close-all', {})
    assert search_runs(hall, 'smoky') == 0


def test_search_shows_no_page_to_the_wrong_role(hall: TownHall) -> None:
    """All roles share the results, and each sees the pages that are for it."""
    assert found(hall, 'salaries', 'admin')[0] == {13: 'Salaries'}
    assert search_runs(hall, 'salaries') == 0
    assert found(hall, 'salaries', 'editor')[0] == found(hall, 'salaries')[0] == {}


def test_search_expires(hall: TownHall, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any change, the result of a search is computed again when its time is over."""
    found(hall, 'y')
    assert search_runs(hall, 'y') == 0
    monkeypatch.setattr(Town.search, 'expires', 0.05)
    before, _ = found(hall, 'k')
    deadline = time.monotonic() + PATIENCE
    while not search_runs(hall, 'k'):
        assert time.monotonic() < deadline
    assert found(hall, 'k')[0] == before
    assert search_runs(hall, 'y') == 0


def test_pages_of_results(hall: TownHall) -> None:
    """Each page of results is a value; a number that is none is refused."""
    lines = '\n'.join(f'{at};Number {at}' for at in range(SEARCH_SIZE + 2))
    hall.visitor(user='editor').post('/pages/2/import', lines)
    assert len(found(hall, 'number')[0]) == SEARCH_SIZE
    assert len(hall.get('/search?words=number&page=2')['found']) == 2
    assert hall.get('/search?words=number&page=3') == {'found': []}
    for page in '0', '-1', '1001', 'x':
        hall.visitor().get(f'/search?words=number&page={page}', status=400)


def found(
    hall: TownHall, words: str, user: str | None = None
) -> tuple[dict[int, str], Counter[Any]]:
    """The titles of the pages that a search finds, and how many of their values came from each
    tier."""
    with hall.application.app.recording() as events:
        pages = hall.visitor(user=user).get('/search', {'words': words}).json['found']
    tiers = Counter(e.tier for e in events if e.name.endswith('.Configured.page'))
    return {page['id']: page['title'] for page in pages}, tiers


def search_runs(hall: TownHall, words: str) -> int:
    """How often a search has to ask the database."""
    return tiers_of(hall, 'search', f'/search?words={words}')['creator']


# the tickets of a user


def test_my_tickets(hall: TownHall) -> None:
    """Everybody sees the open tickets that they handle, and visitors are turned away."""
    assert hall.get('/tickets/mine', 'admin') == hall.get('/users/1/tickets')
    assert [ticket['id'] for ticket in hall.get('/tickets/mine', 'admin')['tickets']] == [1]
    hall.post('/tickets/1/close', {})
    assert hall.get('/tickets/mine', 'admin') == {'tickets': []}
    hall.visitor().get('/tickets/mine', status=403)
    hall.visitor(user='new').get('/tickets/mine', status=403)
    hall.post('/users', {'login': 'new', 'name': 'New', 'role': 'member'})
    assert hall.get('/tickets/mine', 'new') == {'tickets': []}


@pytest.mark.parametrize(
    ('path', 'form', 'concerned'),
    [
        ('/tickets/1/close', {}, {1}),
        ('/tickets', {'title': 'New', 'handler': '4'}, {4}),
        ('/tickets/1/assign', {'handler': '3'}, {1, 3}),
        # one statement without objects, which does not tell whose tickets they are
        ('/tickets/close-all', {}, {*HANDLERS}),
        # the database takes the handler from the tickets
        ('/users/3/delete', {}, {*HANDLERS} - {3}),
        ('/users/3/rename', {'name': 'Changed'}, set()),
    ],
)
def test_change_evicts_the_lists_that_it_concerns(
    hall: TownHall, path: str, form: dict[str, str], concerned: set[int]
) -> None:
    """A change of tickets evicts the list of the handler before and after it, and no other."""
    assert lists(hall)[1] == {*HANDLERS}
    before, computed = lists(hall)
    assert computed == set()
    hall.post(path, form)
    after, computed = lists(hall)
    assert computed == concerned
    hall.application.app.orm_cache.tags.renew(hall.prefix + 'is')
    assert lists(hall)[0] == after
    assert {id for id in after if after[id] != before[id]} <= concerned


def test_ticket_that_was_moved_meanwhile(halls: tuple[TownHall, TownHall]) -> None:
    """A transaction that has loaded a ticket moves it on, after another one has moved it: the list
    that the ticket really leaves is evicted, though the object never knew of it."""
    hall, other = halls
    app: Any = hall.application.app
    lists(hall)
    with app.request_scope(hall.prefix + 'is') as scope:
        ticket = scope.session().get(Ticket, 1)
        assert ticket.handler_id == 1
        other.post('/tickets/1/assign', {'handler': '2'})
        assert 1 in ids(other, 2)
        ticket.handler_id = 3
        scope.commit()
    for each in halls:
        assert 1 in ids(each, 3)
        assert 1 not in ids(each, 1)
        assert 1 not in ids(each, 2)


def ids(hall: TownHall, handler: int) -> list[int]:
    """The tickets in the list of a handler."""
    return [ticket['id'] for ticket in hall.get(f'/users/{handler}/tickets')['tickets']]


def lists(hall: TownHall) -> tuple[dict[int, Any], set[int]]:
    """The list of each handler, and those of them whose list had to be computed."""
    seen, computed = {}, set()
    for id in HANDLERS:
        with hall.application.app.recording() as events:
            answer = hall.visitor().get(f'/users/{id}/tickets', status='*')
        if answer.status_code == 200:
            seen[id] = answer.json
            if any(e.tier == 'creator' and e.name.endswith('.tickets_of') for e in events):
                computed.add(id)
    return seen, computed


def tiers_of(hall: TownHall, name: str, path: str) -> Counter[Any]:
    """How many values of a property came from each tier while a view was shown."""
    with hall.application.app.recording() as events:
        hall.get(path)
    return Counter(e.tier for e in events if e.name.endswith(f'.{name}'))
