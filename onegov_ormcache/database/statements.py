"""Tells which tables an SQL statement reads and which it changes.

It knows SQL and SQLAlchemy's execution contexts, and nothing of what is done with
the answer. sqlglot does the parsing; a statement that SQLAlchemy compiled is
parsed once, then found in a dictionary.

If it is not certain what a statement touches, `Statement.unknown` has the reason.
The analysis does not see what triggers, rules and functions do.
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


# The results for texts of up to so many characters are remembered, for so many texts.
REMEMBERED_LENGTH = 10_000
REMEMBERED = 1_000

# The number of characters up to which a script is parsed. sqlglot takes 2 to 4 microseconds
# a character: to parse a longer script would block the process for longer than it takes
# to deal with a change of every table.
PARSED_LENGTH = 100_000

# Statements that neither read nor change rows of tables. FETCH does read rows, but of the
# query in its DECLARE, which was analyzed before.
HARMLESS = _words(
    'ABORT ANALYZE ATTACH BEGIN CHECKPOINT CLOSE CLUSTER COMMENT COMMIT DEALLOCATE DETACH '
    'DISCARD END FETCH GRANT LISTEN LOCK MOVE NOTIFY PRAGMA PREPARE REASSIGN REINDEX RELEASE '
    'RESET REVOKE ROLLBACK SAVEPOINT SECURITY SET SHOW START UNLISTEN VACUUM'
)
# Statements that begin or end a transaction.
CONTROL = _words('ABORT BEGIN COMMIT END ROLLBACK START')
# First tokens of statements that sqlglot can parse.
PARSED = _words('( COPY CREATE DELETE INSERT MERGE SELECT TABLE UPDATE VALUES WITH')

# Words between CREATE, ALTER or DROP and the kind of object.
MODIFIERS = _words(
    'FOREIGN GLOBAL LOCAL MATERIALIZED OR RECURSIVE REPLACE TEMP TEMPORARY UNLOGGED VIRTUAL'
)
# Words between ALTER, DROP, REFRESH or TRUNCATE and the first name.
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

# Rows of VALUES that are alike once their placeholders are replaced.
LIKE_ROWS = re.compile(r"""(\([^()'"$/-]*\))(?:\s*,\s*\1)+""")


class Statement(NamedTuple):
    """The relations that one execution of SQL touches; made by a `StatementAnalyzer`.

    Several statements in one text count as one. Relations are named as the SQL names them:
    `users`, or `town.users` if it gives the schema. Quoted names keep their case, others are
    lower-cased. A placeholder of a `schema_translate_map` counts as the schema that the
    metadata has.
    """

    #: The relations that are read, and the functions that are selected from or called for
    #: their effect; names of functions end with `()`. The target of an UPDATE or DELETE is
    #: among them only if the SQL also reads it.
    reads: frozenset[str] = frozenset()

    #: The relations whose rows or definition are changed.
    writes: frozenset[str] = frozenset()

    #: The relations, of `writes`, that rows may be deleted from.
    deletes: frozenset[str] = frozenset()

    #: The columns in which existing rows may get another value, as pairs of table and
    #: column; the column is `*` if it is not certain which.
    updates: frozenset[tuple[str, str]] = frozenset()

    #: The reason why the statement could not be analyzed, or None. If there is a reason, the
    #: statement may read and change every table, and all other fields are empty.
    unknown: str | None = None

    #: `transaction` if the text itself begins or ends a transaction, `savepoint` if it rolls
    #: back to a savepoint.
    control: Literal['transaction', 'savepoint'] | None = None

    #: The functions that are called for their value, without their schema. They may be the
    #: application's own, and only the database knows what these read. Empty on SQLite.
    calls: frozenset[str] = frozenset()


class StatementAnalyzer:
    """Analyzes statements; made by a session manager, shared by its engines and all threads.

    :param dialect: the name of SQLAlchemy's dialect, `postgresql` or `sqlite`.
    :param tables: the names of the application's tables, such as `metadata.tables`; it may
        grow later. SQLite compares names without case, so for SQLite a name that differs
        from one of these in case only is given as it is here.
    :raises ValueError: if the dialect is another.
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

        :param statement: as in SQLAlchemy's event `before_cursor_execute`.
        :param context: as in that event; None if there is none.
        """
        compiled = None if context is None else context.compiled
        # The query of a column default runs in the context of its INSERT, whose `compiled`
        # is the INSERT; its `statement` is not set yet.
        if compiled is None or getattr(context, 'statement', None) is None:
            return self._text(statement)

        result = self._compiled.get(compiled)
        if result is None:
            # Not `statement`, which repeats the VALUES for every row.
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
            # A bug of the parser must not make the application's statement fail.
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
        """Return the SQL without the placeholders of SQLAlchemy and the driver.

        Values become constants, schemas get the name that the metadata has, and of rows of
        VALUES that are then alike, one is left.
        """
        if self.dialect == 'postgresql':
            # Split first: '%%(name)s' contains no placeholder.
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
        """Add what one statement of a script touches to `touched`."""
        if not tokens:
            return

        keyword = _word(tokens[0])
        kind = next((word for word in map(_word, tokens[1:]) if word not in MODIFIERS), '')

        if keyword == 'CREATE' and kind == 'TRIGGER':
            touched.defines = True  # a BEGIN or END that follows is of SQLite's trigger body
        if not touched.defines:
            touched.control = _control(keyword, tokens) or touched.control
        if keyword in HARMLESS or _is_harmless_definition(keyword, kind, tokens):
            return
        if keyword in ('DECLARE', 'EXPLAIN', 'REPLACE'):
            # sqlglot returns the rest of these statements as one token.
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
            # SQLite's UPDATE OR ..., which sqlglot does not know.
            replaces = _word(tokens[2]) == 'REPLACE'
            del tokens[1:3]

        with _Silence():
            parsed = self._sqlglot.parser().parse(tokens, sql)
        for root in parsed:
            touched.add(root)
        if replaces:
            touched.deletes.update(touched.writes)


def _control(keyword: str, tokens: Sequence[Token]) -> Literal['transaction', 'savepoint'] | None:
    """Return what a statement begins, ends or rolls back to; see `Statement.control`."""
    rest = ' '.join(token.text for token in tokens[1:4]).upper().split()
    if keyword == 'ROLLBACK' and 'TO' in rest[:2]:
        return 'savepoint'
    if keyword in CONTROL or (keyword == 'PREPARE' and rest[:1] == ['TRANSACTION']):
        return 'transaction'
    return None


def _word(token: Token) -> str:
    """Return a token as a keyword, in upper case; an empty string if it is quoted."""
    if token.token_type in (TokenType.IDENTIFIER, TokenType.STRING):
        return ''
    return token.text.upper()


def _wrapped(keyword: str, rest: str) -> str:
    """Return the statement that a DECLARE, EXPLAIN or REPLACE executes.

    It is empty for an EXPLAIN without ANALYZE, which executes nothing.
    """
    if keyword == 'REPLACE':
        return f'INSERT OR REPLACE {rest}'
    if keyword == 'DECLARE':
        return re.split(r'\sFOR\s', rest, maxsplit=1, flags=re.IGNORECASE)[1]

    options = EXPLAIN_OPTIONS.match(rest)
    if options is None or 'ANALY' not in options[0].upper():
        return ''
    return rest[options.end() :]


def _is_harmless_definition(keyword: str, kind: str, tokens: Sequence[Token]) -> bool:
    """Return whether a statement is a CREATE or DROP that changes no rows of tables."""
    if keyword == 'CREATE':
        return kind not in RELATIONS or all(_word(token) != 'AS' for token in tokens)
    return keyword == 'DROP' and kind in HARMLESS_DROPS


class _Silence(logging.Filter):
    """Drops what sqlglot logs in this thread about SQL that it cannot parse.

    It is a context manager: `with _Silence(): ...`.
    """

    def __enter__(self) -> None:
        self.thread = threading.get_ident()
        logging.getLogger('sqlglot').addFilter(self)

    def __exit__(self, *exc_info: object) -> None:
        logging.getLogger('sqlglot').removeFilter(self)

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether to log a record: True for those of other threads."""
        return record.thread != self.thread
