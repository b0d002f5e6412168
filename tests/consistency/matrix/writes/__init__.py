"""All writes of the matrix."""

from __future__ import annotations

from ..entries import Write
from . import core, database, definitions, listeners, orm, relationships, texts

WRITES: tuple[Write, ...] = tuple(
    write
    for module in (orm, relationships, core, texts, database, listeners, definitions)
    for write in module.entries.writes
)
