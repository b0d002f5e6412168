"""All reads of the matrix."""

from __future__ import annotations

from ..entries import Read
from . import core, database, orm, queries, relations, relationships, texts

READS: tuple[Read, ...] = tuple(
    read
    for module in (orm, relationships, core, queries, relations, texts, database)
    for read in module.entries.reads
)
