"""Takes out of messages what may be a password, and out of all texts what controls a terminal.

Messages of the package have no passwords. Those of an application that is loaded, and of drivers,
are not known.
"""

from __future__ import annotations

import re

#: The user and password of a URL. A password that was not quoted may have any character.
USER = re.compile(r'(?<=://)\S*@')

#: An option or a setting whose name says that it is secret.
OPTION = re.compile(
    r"""(\w*(?:passw|pwd|secret|token)\w*['"]?\s*[=:]\s*)('[^']*'|"[^"]*"|\S+)""", re.IGNORECASE
)


def without_secrets(text: str) -> str:
    """Return a message without what may be a password."""
    return OPTION.sub(r'\1***', USER.sub('***@', text))


def printable(text: str) -> str:
    """Return a text in which each character that is not printable is escaped.

    So it can't move the cursor, change colours, or hide other text. It stays one line.
    """
    if text.isprintable():
        return text
    return ''.join(c if c.isprintable() else c.encode('unicode_escape').decode() for c in text)
