"""Finds keys by the begin and the end of their names.

The server looks at all its keys, a thousand at a time, and answers others meanwhile. This module
does not know what the keys are for.
"""

from __future__ import annotations

import re
from typing import Any

from .client import Client

#: The number of keys that a server looks at before it answers others.
STEP = 1000


def keys(server: Client, begin: str, end: str = '') -> set[str]:
    """Return the keys of one server that begin and end with these texts. A key that is no text
    is left out.

    :raises StoreUnreachable: if the server can't be reached.
    """
    pattern = f'{literal(begin)}*{literal(end)}'

    def find() -> set[bytes]:
        found: Any = server.scan_iter(pattern, count=STEP)
        return set(found)

    names = set()
    for name in server.ask(find):
        try:
            names.add(name.decode())
        except UnicodeDecodeError:
            continue
    return names


def literal(text: str) -> str:
    """Return a pattern of Redis that matches this text alone."""
    return re.sub(r'([\\*?\[\]^])', r'\\\1', text)
