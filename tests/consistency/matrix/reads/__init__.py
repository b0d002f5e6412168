"""All reads of the matrix."""

from __future__ import annotations

from ..entries import Read
from . import core, database, orm, queries, relations, relationships, single_rows, texts

READS: tuple[Read, ...] = tuple(
    read
    for module in (orm, relationships, core, queries, relations, texts, database, single_rows)
    for read in module.entries.reads
)
