"""Collects the relations that a statement reads and changes from its syntax tree.

It knows sqlglot's trees, and how SQL nests and names things. `statements.py` splits texts,
parses them and remembers the results.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from typing import Literal

from sqlglot import exp

__all__ = ['CannotTellError', 'Naming', 'Touched']

# The nodes that may be the root of a statement's tree.
ROOTS = (
    exp.Query,
    exp.Values,
    exp.Insert,
    exp.Update,
    exp.Delete,
    exp.Merge,
    exp.Create,
    exp.Copy,
)

# Names of the database's own functions that read no tables.
BUILTIN = re.compile(
    r'pg_\w+|pragma_\w+|jsonb?_\w+|regexp_\w+|string_to_\w+|xml\w+|txid_\w+|current_\w+'
    r'|(exploding_)?generate_\w+|unnest|row|version|\w*_timestamp|gen_random_uuid|uuidv?\d?'
    r'|set_config|nextval|currval|lastval|setval|set_byte|to_ts\w+|inet_\w+|has_\w+_privilege'
)

# Names that sqlglot gives to functions, but that are keywords of PostgreSQL.
KEYWORDS = frozenset(
    str.split('all and any array case cast coalesce exists greatest in least not nullif or some')
)


class CannotTellError(Exception):
    """It is not certain what a statement touches.

    The message gives the reason, as a predicate of the statement: "names no table".
    """


class Naming:
    """Names relations as a database does; made by a `StatementAnalyzer`, lives as long.

    The parameters are those of the analyzer.
    """

    def __init__(self, dialect: str, tables: Collection[str]) -> None:
        self.dialect = dialect
        self.tables = tables

    def identifier(self, name: str, quoted: bool) -> str:
        """Return an identifier in lower case, or as it is if it is quoted."""
        return name if quoted else name.lower()

    def relation(self, parts: Sequence[str]) -> str:
        """Return the name of a relation, with that of its schema if the SQL gives it.

        :param parts: the identifiers that the dots separate.
        """
        name = '.'.join(parts[-2:])
        if self.dialect == 'sqlite' and name not in self.tables:
            # SQLite compares names without case, even quoted ones.
            folded = name.lower()
            return next((table for table in self.tables if table.lower() == folded), name)
        return name


class Touched:
    """Collects what the statements of one text touch.

    Made by a `StatementAnalyzer` for a text, and dropped after it. `control` and the sets
    mean the same as the fields of `Statement` with these names.
    """

    def __init__(self, naming: Naming) -> None:
        self._naming = naming
        self.control: Literal['transaction', 'savepoint'] | None = None
        #: True after a CREATE TRIGGER.
        self.defines = False
        self.reads: set[str] = set()
        self._calls: set[str] = set()
        self.writes: set[str] = set()
        self.deletes: set[str] = set()
        self.updates: set[tuple[str, str]] = set()

    @property
    def calls(self) -> set[str]:
        """The functions that are called for their value, and are not among `reads`."""
        known = {name[:-2].rpartition('.')[2] for name in self.reads if name.endswith('()')}
        return self._calls - known

    def add(self, root: exp.Expr | None) -> None:
        """Add what a statement touches.

        :param root: the root of the statement's tree.
        :raises CannotTellError: if it is not certain what the statement touches.
        """
        if not isinstance(root, ROOTS):
            raise CannotTellError('is no statement that is known')
        self._visit(root, frozenset())

    def _visit(self, node: exp.Expr, ctes: frozenset[str]) -> None:
        """Add what a part of a statement touches.

        `ctes` are the names of common table expressions, which are no tables in this part.
        """
        children = list(node.iter_expressions())
        for child in children:
            if isinstance(child, exp.With):
                children.remove(child)
                ctes = self._with(child, ctes)
                break

        if isinstance(node, exp.Func) and self._naming.dialect == 'postgresql':
            self._call(node)
        match node:
            case exp.Command():
                raise CannotTellError('has a part that cannot be parsed')
            case exp.Lock():
                return  # the names in FOR UPDATE OF are aliases
            case exp.When():
                # The INSERT and UPDATE of a MERGE name no table.
                action = node.args['then']
                children.remove(action)
                children.extend(action.iter_expressions())
            case exp.Insert() | exp.Update() | exp.Delete() | exp.Merge() | exp.Into():
                children.remove(node.this)
                self._change(node, self._target(node.this))
            case exp.Create():
                children = [node.expression] if node.expression else []
                if children:
                    self.writes.add(self._target(node.this))
                elif node.find(exp.ExecuteAsProperty):
                    raise CannotTellError('executes what was prepared')
            case exp.Copy():
                children = [] if node.args['kind'] else [node.this]
                if node.args['kind']:
                    self.writes.add(self._target(node.this))
            case exp.Table():
                children = [child for child in children if child is not node.args.get('indexed')]
                self._read_table(node, ctes)
            case exp.Lateral():
                self._read_function(node.this)
            case exp.In() if isinstance(node.args.get('field'), exp.Column):
                # SQLite's `x IN users`, which reads a table.
                self._read(node.args['field'].parts, ctes)
            case exp.Select() if not any(isinstance(child, exp.From) for child in children):
                self._read_calls(node.expressions)

        for child in children:
            self._visit(child, ctes)

    def _with(self, with_: exp.With, ctes: frozenset[str]) -> frozenset[str]:
        """Visit the common table expressions of a WITH; return `ctes` with their names added."""
        names = [self._identifier(cte.args['alias'].this) for cte in with_.expressions]
        if with_.recursive or self._naming.dialect == 'sqlite':
            ctes = ctes.union(names)
        for name, cte in zip(names, with_.expressions, strict=True):
            self._visit(cte.this, ctes)
            ctes = ctes.union((name,))
        return ctes

    def _change(self, node: exp.Expr, table: str) -> None:
        """Add what an INSERT, UPDATE, DELETE, MERGE or SELECT INTO does to its target."""
        self.writes.add(table)
        match node:
            case exp.Delete():
                self.deletes.add(table)
            case exp.Update():
                self._update(table, node.expressions)
            case exp.Insert():
                conflict = node.args.get('conflict')
                self._update(table, conflict.expressions if conflict else ())
                if node.args.get('alternative') == 'REPLACE':
                    self.deletes.add(table)
            case exp.Merge():
                for when in node.args['whens'].expressions:
                    self._change_matched(when.args['then'], table)

    def _change_matched(self, action: exp.Expr, table: str) -> None:
        """Add what one WHEN of a MERGE does to the target."""
        if isinstance(action, exp.Update):
            self._update(table, action.expressions or [action])
        elif not isinstance(action, exp.Insert) and action.name != 'DO NOTHING':
            self.deletes.add(table)

    def _update(self, table: str, assignments: Iterable[exp.Expr]) -> None:
        for assignment in assignments:
            left = assignment.this if isinstance(assignment, exp.EQ) else assignment
            self.updates.update((table, column) for column in self._columns(left))

    def _columns(self, assigned: exp.Expr) -> Iterator[str]:
        match assigned:
            case exp.Tuple():
                for part in assigned.expressions:
                    yield from self._columns(part)
            case exp.Paren() | exp.Bracket() | exp.Dot():
                yield from self._columns(assigned.this)
            case exp.Column():
                yield self._identifier(assigned.parts[0])
            case _:
                yield '*'

    def _target(self, node: exp.Expr) -> str:
        table = node.this if isinstance(node, exp.Schema) else node
        if not isinstance(table, exp.Table) or not isinstance(table.this, exp.Identifier):
            raise CannotTellError('changes something that is no table')
        return self._relation(table.parts)

    def _read_table(self, table: exp.Table, ctes: frozenset[str]) -> None:
        if isinstance(table.this, exp.Identifier):
            self._read(table.parts, ctes)
        elif isinstance(table.this, exp.Func):
            self._read_function(table.this)
        elif not table.args.get('rows_from'):
            raise CannotTellError('reads something that is no table')

    def _read(self, parts: Sequence[exp.Expr], ctes: frozenset[str]) -> None:
        if len(parts) > 1 or self._identifier(parts[0]) not in ctes:
            self.reads.add(self._relation(parts))

    def _read_calls(self, expressions: Iterable[exp.Expr]) -> None:
        """Add the functions of a SELECT without FROM, which are called for their effect.

        An example is `SELECT archive(1)`.
        """
        if self._naming.dialect == 'postgresql':
            for expression in expressions:
                for function in expression.find_all(exp.Anonymous):
                    self._read_function(function)

    def _call(self, function: exp.Func) -> None:
        """Add a function that is called for its value; most are the database's own."""
        if isinstance(function, (exp.Anonymous, exp.AnonymousAggFunc)):
            self._calls.add(self._identifier(function.this))
        else:  # sqlglot knows the name, but the application may have a function of its own
            self._calls.update({name.lower() for name in function.sql_names()} - KEYWORDS)

    def _read_function(self, node: exp.Expr) -> None:
        if isinstance(node, exp.Dot):
            node = node.expression
        if not isinstance(node, exp.Func):
            return

        schema: exp.Expr | None = None
        if isinstance(node.parent, exp.Dot):
            schema = node.parent.this
        elif isinstance(node.parent, exp.Table):
            schema = node.parent.args.get('db')

        called = node.this if isinstance(node, exp.Anonymous) else node.sql_name()
        parts = [self._identifier(part) for part in (schema, called) if part is not None]
        if parts[0] != 'pg_catalog' and not BUILTIN.fullmatch(parts[-1]):
            self.reads.add('.'.join(parts) + '()')

    def _relation(self, parts: Sequence[exp.Expr]) -> str:
        return self._naming.relation([self._identifier(part) for part in parts])

    def _identifier(self, name: exp.Expr | str) -> str:
        if isinstance(name, str):
            return self._naming.identifier(name, quoted=False)
        return self._naming.identifier(name.name, quoted=bool(name.args.get('quoted')))
