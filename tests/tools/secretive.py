"""Applications whose errors have passwords."""

from __future__ import annotations


def raises() -> None:
    raise ValueError('can not connect to postgresql://me:hush@host/db')


def also_raises() -> None:
    raise RuntimeError('{"user": "me", "password": "hush"}, password=hush')
