"""Tells which tables an SQL statement reads and which it changes.

It knows SQL and SQLAlchemy's execution contexts, nothing of what is done with
the answer. sqlglot does the parsing; a statement that SQLAlchemy compiled is
parsed once, then found in a dictionary.

Whatever cannot be told for certain is `Statement.unknown`, with the reason.
Triggers and rules are out of sight, and so is what functions do.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Iterable, Iterator, Sequence
from functools import lru_cache
from itertools import dropwhile
from typing import Literal, NamedTuple
from weakref import WeakKeyDictionary

from sqlalchemy.engine import Compiled, ExecutionContext
from sqlglot import Token, TokenType
from sqlglot.dialects.dialect import Dialect
from sqlglot.errors import SqlglotError

from .syntax import CannotTellError, Naming, Touched

__all__ = ['Statement', 'StatementAnalyzer']

DIALECTS = {'postgresql': 'postgres', 'sqlite': 'sqlite'}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Texts up to this length are remembered, this many of them.
REMEMBERED_LENGTH = 10_000
REMEMBERED = 1_000

# sqlglot takes 2 to 4 microseconds a character: a longer script would hold up its
# process for longer than to run every creator again does.
PARSED_LENGTH = 100_000

# Statements that neither read nor change rows of tables. FETCH reads what DECLARE
# has named.
HARMLESS = _words(
    'ABORT ANALYZE ATTACH BEGIN CHECKPOINT CLOSE CLUSTER COMMENT COMMIT DEALLOCATE DETACH '
    'DISCARD END FETCH GRANT LISTEN LOCK MOVE NOTIFY PRAGMA PREPARE REASSIGN REINDEX RELEASE '
    'RESET REVOKE ROLLBACK SAVEPOINT SECURITY SET SHOW START UNLISTEN VACUUM'
)
# Statements that begin or end a transaction.
CONTROL = _words('ABORT BEGIN COMMIT END ROLLBACK START')
PARSED = _words('( COPY CREATE DELETE INSERT MERGE SELECT TABLE UPDATE VALUES WITH')

# Between CREATE, ALTER or DROP and the kind of thing that they are about.
MODIFIERS = _words(
    'FOREIGN GLOBAL LOCAL MATERIALIZED OR RECURSIVE REPLACE TEMP TEMPORARY UNLOGGED VIRTUAL'
)
# Between ALTER, DROP, REFRESH or TRUNCATE and the first name.
BEFORE_NAMES = _words('CONCURRENTLY EXISTS FOREIGN IF MATERIALIZED ONLY TABLE VIEW')
RELATIONS = frozenset(('TABLE', 'VIEW'))
HARMLESS_DROPS = _words(
    'AGGREGATE FUNCTION INDEX POLICY PROCEDURE ROLE ROUTINE RULE SEQUENCE STATISTICS TRIGGER USER'
)

EXPLAIN_OPTIONS = re.compile(
    r'\s*(?:\([^)]*\)|(?:(?:ANALY[SZ]E|VERBOSE|QUERY\s+PLAN)\s+)*)', re.IGNORECASE
)

PLACEHOLDERS = {
    'postgresql': re.compile(
        r'__\[POSTCOMPILE_\S+?(?:~~.+?~~)?\]'
        r"""|%\([^\s()%"'/]+\)s|%[sbt](?!\w)"""
    ),
    'sqlite': re.compile(r'__\[POSTCOMPILE_\S+?(?:~~.+?~~)?\]|\?\d+'),
}
SCHEMA_PLACEHOLDER = re.compile(r'__\[SCHEMA_(?:(_none)\]\.|([^\]]+)\])')

# Rows of VALUES that are alike once the placeholders are gone.
LIKE_ROWS = re.compile(r"""(\([^()'"$/-]*\))(?:\s*,\s*\1)+""")


class Statement(NamedTuple):
    """What one execution of SQL touches; several statements in one text count as one.

    Relations are named as the SQL names them: `users`, or `town.users` if it says the
    schema. Quoted names keep their case, others are lower-cased. Placeholders of a
    `schema_translate_map` stand for the schema that the metadata has.
    """

    #: The relations read; a function that was selected from or called ends with `()`.
    #: The target of an UPDATE or DELETE is among them only if the SQL also reads it.
    reads: frozenset[str] = frozenset()

    #: The relations whose rows or definition are changed.
    writes: frozenset[str] = frozenset()

    #: Those of `writes` that rows may be deleted from.
    deletes: frozenset[str] = frozenset()

    #: The columns that an existing row may get another value in, as pairs of table
    #: and column; the column is `*` if it cannot be told.
    updates: frozenset[tuple[str, str]] = frozenset()

    #: Why nothing of this could be told, or None. Such a statement may have changed
    #: and read every table.
    unknown: str | None = None

    #: Whether the text itself begins or ends a transaction, or undoes a savepoint.
    control: Literal['transaction', 'savepoint'] | None = None

    #: The functions called for a value that may be the application's own, without their
    #: schema: what such a function reads, only the database knows. SQLite has none.
    calls: frozenset[str] = frozenset()


class StatementAnalyzer:
    """Analyzes the statements of one engine; made with it, shared by its threads.

    `dialect` is the name of SQLAlchemy's dialect, `postgresql` or `sqlite`; a
    `ValueError` is raised for another. `tables` are the names that the application
    knows (`metadata.tables`, may grow later): SQLite compares names without case, so
    there a name that only differs in case from one of these is given as it is here.
    """

    def __init__(self, dialect: str, tables: Collection[str] = ()) -> None:
        if dialect not in DIALECTS:
            known = ' or '.join(DIALECTS)
            raise ValueError(f'statements of {dialect!r} cannot be analyzed, only {known}')

        self.dialect = dialect
        self._naming = Naming(dialect, tables)
        self._placeholders = PLACEHOLDERS[dialect]
        self._sqlglot = Dialect.get_or_raise(DIALECTS[dialect])
        self._compiled: WeakKeyDictionary[Compiled, Statement] = WeakKeyDictionary()
        self._remembered = lru_cache(REMEMBERED)(self._read)

    def analyze(self, statement: str, context: ExecutionContext | None = None) -> Statement:
        """Return what a statement touches; never raises.

        `statement` and `context` are those of SQLAlchemy's `before_cursor_execute`
        event.
        """
        compiled = None if context is None else context.compiled
        # A default of a column is executed in the context of its INSERT, which is not
        # yet complete: it has no statement.
        if compiled is None or getattr(context, 'statement', None) is None:
            return self._text(statement)

        result = self._compiled.get(compiled)
        if result is None:
            # The template: the executed statement repeats it for every row.
            result = self._text(compiled.string)
            self._compiled[compiled] = result
        return result

    def _text(self, sql: str) -> Statement:
        if len(sql) > REMEMBERED_LENGTH:
            return self._read(sql)
        return self._remembered(sql)

    def _read(self, sql: str) -> Statement:
        touched = Touched(self._naming)
        try:
            self._script(self._normalized(sql), touched)
        except CannotTellError as error:
            reason = str(error)
        except SqlglotError:
            reason = 'cannot be parsed'
        except RecursionError:
            reason = 'is nested too deeply'
        except Exception as error:
            # A bug of the parser must not fail the application's statement.
            reason = f'cannot be parsed ({error!r})'
        else:
            return Statement(
                frozenset(touched.reads),
                frozenset(touched.writes),
                frozenset(touched.deletes),
                frozenset(touched.updates),
                control=touched.control,
                calls=frozenset(touched.calls),
            )
        return Statement(unknown=f'{reason}: {sql[:80]}')

    def _normalized(self, sql: str) -> str:
        """Return the SQL without what SQLAlchemy and the driver add to the language."""
        if self.dialect == 'postgresql':
            # Split first: in '%%(name)s' there is no placeholder.
            sql = '%'.join(self._placeholders.sub(' 0 ', part) for part in sql.split('%%'))
        else:
            sql = self._placeholders.sub(' 0 ', sql)
        sql = SCHEMA_PLACEHOLDER.sub(lambda m: '' if m[1] else f'"{m[2]}"', sql)
        return LIKE_ROWS.sub(r'\1', sql)

    def _script(self, sql: str, touched: Touched) -> None:
        if len(sql) > PARSED_LENGTH:
            raise CannotTellError(f'is longer than {PARSED_LENGTH:,} characters')

        tokens: list[Token] = []
        for token in self._sqlglot.tokenize(sql):
            if token.token_type is not TokenType.SEMICOLON:
                tokens.append(token)
                continue
            self._one(tokens, sql, touched)
            tokens = []
        self._one(tokens, sql, touched)

    def _one(self, tokens: Sequence[Token], sql: str, touched: Touched) -> None:
        """Add what one statement of a script touches."""
        if not tokens:
            return

        keyword = _word(tokens[0])
        kind = next((word for word in map(_word, tokens[1:]) if word not in MODIFIERS), '')

        if keyword == 'CREATE' and kind == 'TRIGGER':
            touched.defines = True  # SQLite's BEGIN ...; END is part of it
        if not touched.defines:
            touched.control = _control(keyword, tokens) or touched.control
        if keyword in HARMLESS or _is_harmless_definition(keyword, kind, tokens):
            return
        if keyword in ('DECLARE', 'EXPLAIN', 'REPLACE'):
            # sqlglot leaves the rest of these in one piece.
            self._script(_wrapped(keyword, tokens[1].text), touched)
        elif keyword == 'REFRESH':
            rest = self._sqlglot.tokenize(tokens[1].text)
            self._redefinition([tokens[0], *rest], touched)
        elif keyword in ('ALTER', 'DROP') and kind in RELATIONS:
            self._redefinition(tokens, touched)
        elif keyword == 'TRUNCATE':
            if _word(tokens[-1]) == 'CASCADE':
                raise CannotTellError('empties every table that refers to its tables')
            self._redefinition(tokens, touched)
        elif keyword in PARSED:
            self._parsed(tokens, sql, touched)
        else:
            raise CannotTellError('is none of the statements that are known')

    def _redefinition(self, tokens: Sequence[Token], touched: Touched) -> None:
        """Add the relations that an ALTER, DROP, REFRESH or TRUNCATE names."""
        names = set(self._names(tokens[1:]))
        if [_word(token) for token in tokens[-3:-1]] == ['RENAME', 'TO']:
            names.add(self._identifier(tokens[-1]))
        if not names:
            raise CannotTellError('names no table')
        touched.writes.update(names)
        touched.deletes.update(names)

    def _names(self, tokens: Iterable[Token]) -> Iterator[str]:
        """Yield the names in `TABLE IF EXISTS town.users *, groups CASCADE`."""
        parts: list[str] = []
        dotted = False
        for token in dropwhile(lambda token: _word(token) in BEFORE_NAMES, tokens):
            if token.token_type is TokenType.COMMA:
                yield self._naming.relation(parts)
                parts = []
            elif token.token_type is TokenType.DOT:
                dotted = True
            elif parts and not dotted:
                if token.token_type is not TokenType.STAR:
                    break
            elif _word(token) != 'ONLY':
                parts.append(self._identifier(token))
                dotted = False
        if parts:
            yield self._naming.relation(parts)

    def _identifier(self, token: Token) -> str:
        return self._naming.identifier(token.text, token.token_type is TokenType.IDENTIFIER)

    def _parsed(self, tokens: Sequence[Token], sql: str, touched: Touched) -> None:
        tokens = list(tokens)
        replaces = False
        if [_word(token) for token in tokens[:2]] == ['UPDATE', 'OR']:
            # SQLite's, which sqlglot does not know.
            replaces = _word(tokens[2]) == 'REPLACE'
            del tokens[1:3]

        with _Silence():
            parsed = self._sqlglot.parser().parse(tokens, sql)
        for root in parsed:
            touched.add(root)
        if replaces:
            touched.deletes.update(touched.writes)


def _control(keyword: str, tokens: Sequence[Token]) -> Literal['transaction', 'savepoint'] | None:
    """What a statement ends or begins."""
    rest = ' '.join(token.text for token in tokens[1:4]).upper().split()
    if keyword == 'ROLLBACK' and 'TO' in rest[:2]:
        return 'savepoint'
    if keyword in CONTROL or (keyword == 'PREPARE' and rest[:1] == ['TRANSACTION']):
        return 'transaction'
    return None


def _word(token: Token) -> str:
    """Return a token as a keyword, or nothing if it is quoted."""
    if token.token_type in (TokenType.IDENTIFIER, TokenType.STRING):
        return ''
    return token.text.upper()


def _wrapped(keyword: str, rest: str) -> str:
    """Return the statement that a DECLARE, EXPLAIN or REPLACE executes."""
    if keyword == 'REPLACE':
        return f'INSERT OR REPLACE {rest}'
    if keyword == 'DECLARE':
        return re.split(r'\sFOR\s', rest, maxsplit=1, flags=re.IGNORECASE)[1]

    options = EXPLAIN_OPTIONS.match(rest)
    if options is None or 'ANALY' not in options[0].upper():
        return ''
    return rest[options.end() :]


def _is_harmless_definition(keyword: str, kind: str, tokens: Sequence[Token]) -> bool:
    """Tell if a statement creates or drops something without a change of any rows."""
    if keyword == 'CREATE':
        return kind not in RELATIONS or all(_word(token) != 'AS' for token in tokens)
    return keyword == 'DROP' and kind in HARMLESS_DROPS


class _Silence(logging.Filter):
    """Keeps sqlglot from logging what this thread cannot parse: `with _Silence(): ...`."""

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        logging.getLogger('sqlglot').addFilter(self)

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger('sqlglot').removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell if a record is to be logged: all but those of this thread."""
        return record.thread != self.thread
