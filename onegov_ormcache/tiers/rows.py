"""Takes rows and row mappings apart, and makes them again.

A row finds its values by the names of its fields, and by the columns and mapped attributes that
its query has selected. Stored bytes have these keys by name. This module looks a name up in the
tables of the application and in modules that are imported already: stored bytes can't cause an
import.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ormsgpack import packb, unpackb
from sqlalchemy import Column, Table
from sqlalchemy.engine import IteratorResult, Row, RowMapping
from sqlalchemy.engine.result import SimpleResultMetaData
from sqlalchemy.orm import InstrumentedAttribute

from onegov_ormcache.errors import RowKeyError
from onegov_ormcache.tiers.records import find_class
from onegov_ormcache.tiers.refusals import Refused

#: The names of a key: of a table and its column; of a module, class and attribute; or a text
#: that is the key itself.
KeyName = str | list[str]

#: The number of headers whose metadata are kept, so that they are made once for many values; and
#: the most bytes of one of them.
KEPT, KEPT_BYTES = 1000, 10_000


class RowKeys:
    """The keys of rows, as their names and back. Made once per serializer.

    :param tables: the tables of the application's metadata, by their full names.
    """

    def __init__(self, tables: Mapping[str, Table]) -> None:
        self._tables = tables
        self._kept: dict[bytes, _RowMetaData] = {}

    def header(self, rows: Iterable[Row[Any] | RowMapping]) -> bytes | None:
        """Return what the rows have in common: their fields, and the names of each field's other
        keys.

        A key without a name is left out, such as the column of an alias.

        :return: None if the rows do not all have the same.
        :raises Refused: if two keys of a row are the same, or a column has no name.
        """
        # the rows of one result share its metadata, so one row of each metadata is enough to see
        headers = {self._header(row) for row in {row._parent: row for row in rows}.values()}
        return headers.pop() if len(headers) == 1 else None

    def _header(self, row: Row[Any] | RowMapping) -> bytes:
        fields = row_fields(row)
        names: list[list[KeyName]] = [[] for _ in fields]
        for key, index in row._key_to_index.items():
            name = self._name(key)
            if name is not None and name not in fields:
                names[index].append(name)
        return packb([fields, names])

    def build(self, header: bytes, rows: Sequence[Sequence[Any]]) -> list[Row[Any]]:
        """Return rows with the fields and keys of a header, and these values.

        Keys that this process does not have are left out.

        :raises Exception: of any kind, if header and values do not fit together.
        """
        metadata = self._kept.get(header) or self._metadata(header)
        if set(map(len, rows)) - {len(metadata.keys)}:
            raise ValueError('the rows do not fit their keys')
        result: IteratorResult[Any] = IteratorResult(metadata, map(tuple, rows))
        return list(result.all())

    def _metadata(self, header: bytes) -> _RowMetaData:
        fields, names = unpackb(header)
        if set(map(type, fields)) - {str} or not len(set(fields)) == len(fields) == len(names):
            raise ValueError(f'the fields {fields} do not fit their keys')
        found = [[self._find(name) for name in of_field] for of_field in names]
        keys = [tuple([key for key in of_field if key is not None]) for of_field in found]
        metadata = _RowMetaData(fields, keys)
        # a key that is missing may be in a module that is imported later
        if len(header) <= KEPT_BYTES and list(map(len, keys)) == list(map(len, found)):
            if len(self._kept) >= KEPT:
                self._kept.clear()
            self._kept[header] = metadata
        return metadata

    def _name(self, key: Any) -> KeyName | None:
        """Return the name by which a key is found again; None if there is none."""
        if isinstance(key, str):
            # a text with a number is SQLAlchemy's own, for columns without a name
            return None if key.startswith('%(') else str(key)
        names: KeyName
        if isinstance(key, InstrumentedAttribute):
            names = [key.class_.__module__, key.class_.__qualname__, key.key]
        elif isinstance(key, Column) and isinstance(key.table, Table):
            names = [key.table.fullname, key.key]
        else:
            return None
        # columns can't be compared with ==; one with annotations has the hash of its column
        found = self._find(names)
        return names if found is not None and hash(found) == hash(key) else None

    def _find(self, name: KeyName) -> object | None:
        """Return the key of a name; None if there is none.

        :raises Exception: of any kind, if it is no name.
        """
        if isinstance(name, str):
            return name
        if len(name) == 2:
            table = self._tables.get(name[0])
            return None if table is None else table.columns.get(name[1])
        module, qualname, attribute = name
        cls = find_class(module, qualname)
        found = None if cls is None else vars(cls).get(attribute)
        return found if isinstance(found, InstrumentedAttribute) else None


class _RowMetaData(SimpleResultMetaData):
    """The keys of cached rows, with an error that says what cached rows do not have."""

    __slots__ = ()

    def _key_fallback(self, key: Any, err: Exception | None, raiseerr: bool = True) -> Any:
        if isinstance(key, str):
            return super()._key_fallback(key, err, raiseerr)
        raise RowKeyError(
            f'A cached row has no value for the {type(key).__name__} {key}: it finds values by '
            'the columns of tables, by the attributes of mapped classes in modules, and by name. '
            f'Use a name: {", ".join(map(repr, self._keys))}.'
        ) from err


def row_fields(row: Row[Any] | RowMapping) -> list[str]:
    """Return the names of a row's fields.

    :raises Refused: if two of them are the same, or a column has no name.
    """
    fields = list(row._parent.keys)
    if len(set(fields)) != len(row):
        raise Refused(
            f'is a row whose columns are called {fields}. Give each column a name of its '
            'own, for example with .label(...).'
        )
    return fields
