"""Texts for people: without secrets, without what controls a terminal, and short."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from onegov_ormcache.tools.secrets import printable, without_secrets
from onegov_ormcache.tools.showing import as_json, endings, seconds, size


@pytest.mark.parametrize(
    'text',
    [
        'redis://:hush@host/0',
        'can not connect to postgresql+psycopg://me:hush@host/db?x=1',
        'postgresql://me:hu@sh/hush@host/db',
        'password=hush',
        "PASSWORD = 'hush and hush'",
        '{"password": "hush"}',
        "sslpassword='hush'",
        'api_token: hush',
        'surrogate_secret=hush,',
        'rediss://h/0?password=hush&db=1',
    ],
)
def test_secrets_are_taken_out(text: str) -> None:
    """What may be a password is not shown."""
    assert 'hush' not in without_secrets(text)
    assert '***' in without_secrets(text)


@pytest.mark.parametrize(
    'text', ['no column "name" at redis://host:6379/0', 'me@example.com', 'the policy names users']
)
def test_the_rest_stays(text: str) -> None:
    """A message without a secret is shown as it is."""
    assert without_secrets(text) == text


@given(st.text(st.characters(exclude_categories=())))
def test_printable(text: str) -> None:
    """Whatever a text has in it, each character that is shown is printable."""
    shown = printable(text)
    assert shown.isprintable()
    assert printable(shown) == shown
    json.loads(json.dumps(as_json({'text': text, 'set': {text}})))


def test_endings() -> None:
    """A name is as short as it may be, and the name of a view or arguments are not cut."""
    names = ['a.App.users', 'a.App.page', 'b.Wiki.page', 'a.App.view(a.home.Tree)', "x.f('1.5')"]
    assert endings(names) == {
        'a.App.users': 'users',
        'a.App.page': 'App.page',
        'b.Wiki.page': 'Wiki.page',
        'a.App.view(a.home.Tree)': 'view(a.home.Tree)',
        "x.f('1.5')": "f('1.5')",
    }


@pytest.mark.parametrize(
    ('number', 'text'),
    [(None, '-'), (0.0, '0.0 ms'), (0.05, '50.0 ms'), (1.0, '1.0 s'), (90, '1.5 min'),
     (7200, '2.0 h'), (604800, '7.0 d')],
)  # fmt: skip
def test_seconds(number: float | None, text: str) -> None:
    """A time span has a unit that suits it."""
    assert seconds(number) == text


@pytest.mark.parametrize(
    ('number', 'text'), [(None, '-'), (0, '0 B'), (1023, '1023 B'), (1536, '1.5 KiB')]
)
def test_size(number: int | None, text: str) -> None:
    """A number of bytes has a unit that suits it."""
    assert size(number) == text
