"""VNN-LIB 1.0 text -> Property: declared variables and asserted formulas, with a place in the text for every error.

Three parts: `Source` (the text, and where an offset lies in it), a reader of s-expressions that works token by token without recursion, and
the translation of one statement into formulas. Declarations, and comparisons of a variable with a number or a variable with or without the
assert around them, are nearly all of a large file, so each is one token of the reader. Formulas are named tuples rather than dataclasses
because a large file makes hundreds of thousands of them.
"""
from __future__ import annotations

import gzip
import io
import itertools
import math
import os
import re
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from verifier.errors import SpecError

MAX_DEPTH = 100
MAX_BYTES, MAX_UNPACKING, SMALL_BYTES = 2**28, 128, 2**25
"""Of a property: its text at most, and how many times its packed size where it has more than SMALL_BYTES (the largest public one has 60 times)."""

_VARIABLE = r"[XY]_(?:0|[1-9][0-9]{0,8})(?![^\s()])"
_NUMBER = r"[-+]?(?=\.?[0-9])[0-9]{0,999}(?:\.[0-9]{0,999})?(?:[eE][-+]?[0-9]{1,4})?(?![^\s()])"
_TOKEN = re.compile(
    rf"(?P<assert>\(\s*assert\s*)?\(\s*(?P<op><=|>=)\s+(?P<left>{_VARIABLE})\s+(?:(?P<number>{_NUMBER})|(?P<right>{_VARIABLE}))\s*\)(?(assert)\s*\))"
    rf"|\(\s*declare-const\s+(?P<declared>{_VARIABLE})\s+Real\s*\)"
    r"|(?P<token>[()]|\"[^\"]*\"|\|[^|]*\||[^\s()\"|]+|[\"|])"
    r"|\s{64,}"
)
_VARIABLE_ONLY = re.compile(_VARIABLE)
_NUMBER_ONLY = re.compile(_NUMBER)
_LONG_NUMBER = re.compile(r"[-+]?\.?[0-9][0-9.]*(?:[eE][-+]?[0-9]+)?")
_COMMENT = re.compile(r"\"[^\"]*\"|\|[^|]*\||;[^\n]*")
_COMPARISONS = ("<=", ">=", "<", ">", "=")
_IGNORED_COMMANDS = ("set-logic", "set-info", "set-option", "get-model")
_SECOND_EDITION = ("vnnlib-version", "declare-network", "declare-input", "declare-output", "declare-hidden")


class Variable(NamedTuple):
    """X_index (an input) or Y_index (an output), by `letter`."""

    letter: str
    index: int


class Number(NamedTuple):
    """A decimal: the float64 nearest to it, and itself, as it is written."""

    value: float
    text: str


class Apply(NamedTuple):
    """One of + - * / on terms. `at` is the offset in the text."""

    op: str
    terms: tuple
    at: int


class Compare(NamedTuple):
    """left op right, op one of <= >= < > =."""

    op: str
    left: Term
    right: Term
    at: int


class And(NamedTuple):
    parts: tuple
    at: int


class Or(NamedTuple):
    parts: tuple
    at: int


class Not(NamedTuple):
    part: Formula
    at: int


Term: TypeAlias = "Number | Variable | Apply"
Formula: TypeAlias = "Compare | And | Or | Not"


@dataclass(frozen=True, slots=True)
class Source:
    """A named text: turns offsets into places."""

    name: str
    text: str

    def error(self, at: int, sentence: str) -> SpecError:
        line = self.text.count("\n", 0, at) + 1
        column = at - (self.text.rfind("\n", 0, at) + 1) + 1
        return SpecError(f"{self.name}, line {line}, column {column}: {sentence}")


@dataclass(frozen=True, slots=True)
class Property:
    """A parsed file: an x and y are unsafe iff all of `asserts` hold. `integers` are the variables declared Int."""

    source: Source
    asserts: tuple[Formula, ...]
    n_in: int
    n_out: int
    integers: tuple[Variable, ...] = ()


class _Atom(NamedTuple):
    text: str
    at: int


class _List(NamedTuple):
    items: list
    at: int


def read_vnnlib1(path: str | Path) -> Property:
    """The property that the file states; `.gz` files are unpacked.

    Raises:
        SpecError: the file cannot be read, or is not VNN-LIB 1.0; names file, line and column.
    """
    return parse_vnnlib1(_text_of(Path(path)), str(path))


def parse_vnnlib1(text: str, name: str = "property") -> Property:
    """The property that `text` states; `name` stands for the file in errors."""
    source = Source(name, text)
    integers: list[Variable] = []
    names: dict[str, Variable] = {}
    asserts: list[Formula] = []
    ended = False
    for statement in _statements(source, names):
        if ended and (isinstance(statement, Compare) or _command(statement, source) == "assert"):
            raise source.error(statement.at, "an assert stands behind check-sat or exit, so it is not part of the property: remove it or move it up.")
        if isinstance(statement, Compare):
            asserts.append(statement)
            continue
        command = _command(statement, source)
        if command == "assert":
            if len(statement.items) != 2:
                seen = len(statement.items) - 1
                raise source.error(statement.at, f"'assert' takes one formula, this one has {seen}: write (assert (and ...)).")
            asserts.append(_formula(statement.items[1], source, names))
        elif command in ("declare-const", "declare-fun"):
            variable, sort = _declaration(statement, source)
            name_of_variable = f"{variable.letter}_{variable.index}"
            if name_of_variable in names:
                raise _declared_twice(name_of_variable, statement.at, source)
            names[name_of_variable] = variable
            integers += [variable] if sort == "Int" else []
        elif command in ("check-sat", "exit"):
            ended = True
        elif command not in _IGNORED_COMMANDS:
            raise _unknown_command(command, statement.at, source)
    n_in, n_out = _count(source, names, "X", "inputs"), _count(source, names, "Y", "outputs")
    return Property(source, tuple(asserts), n_in, n_out, tuple(integers))


def _text_of(path: Path) -> str:
    """The file's text, unpacked where it starts with gzip's magic number."""
    if path.is_dir():
        raise SpecError(f"{path} is a folder, not a property: give the path of a .vnnlib file.")
    try:
        with path.open("rb") as file:
            data = file.read(min(MAX_BYTES, os.fstat(file.fileno()).st_size or MAX_BYTES) + 1)  # room is made for as much as is asked for
        most = MAX_BYTES
        if data[:2] == b"\x1f\x8b":
            most = min(MAX_BYTES, max(SMALL_BYTES, MAX_UNPACKING * len(data)))
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(most + 1)
        if len(data) > most:
            raise SpecError(f"{path} has more than {most:,} bytes of text, which is too many for a property of its size: split it into several.")
        text = data.decode("utf-8-sig")
    except FileNotFoundError:
        raise SpecError(f"{path} does not exist: check the path of the property.") from None
    except EOFError:
        raise SpecError(f"{path} is a gzip file that ends too early: copy it again.") from None
    except zlib.error as error:
        raise SpecError(f"{path} is a damaged gzip file ({error}): copy it again.") from None
    except OSError as error:
        raise SpecError(f"{path} cannot be read ({error.strerror or error}): check the file and its permissions.") from None
    except UnicodeDecodeError as error:
        raise SpecError(f"{path} is not text (byte {error.start} is not UTF-8): give a VNN-LIB 1.0 file.") from None
    except ValueError as error:
        raise SpecError(f"{str(path)!r} is not a path ({error}): give the path of a .vnnlib file.") from None
    if not text.strip():
        raise SpecError(f"{path} is empty: a property declares X_i and Y_j and asserts what is unsafe.")
    return text


def _statements(source: Source, names: dict[str, Variable]) -> Iterator[_List | Compare]:
    """The top-level lists of the text, one by one; an assert of a simple comparison comes as that comparison.

    `names` are the variables declared so far: simple declarations are added, and variables looked up, as they are met.
    """
    text = _without_comments(source.text)
    stack: list[_List] = []
    for match in _TOKEN.finditer(text):
        token = match["token"]
        if match.lastgroup is None:
            continue
        if token is None:
            item = _simple(match, source, names, not stack)
            if stack:
                stack[-1].items.append(item)
            elif item is not None:
                yield item
        elif token == "(":
            if len(stack) >= MAX_DEPTH:
                raise source.error(match.start(), f"parentheses are nested deeper than {MAX_DEPTH}: flatten the formula.")
            stack.append(_List([], match.start()))
        elif token == ")":
            if not stack:
                raise source.error(match.start(), "')' closes nothing: remove it, or add the missing '('.")
            closed = stack.pop()
            if stack:
                stack[-1].items.append(closed)
            else:
                yield closed
        elif stack:
            stack[-1].items.append(_Atom(_symbol(token, source, match.start()), match.start()))
        else:
            raise source.error(match.start(), f"'{_short(token)}' stands outside of all parentheses: remove it, or write (assert ...).")
    if stack:
        raise source.error(stack[-1].at, "this '(' is never closed: the file is cut off, or a ')' is missing.")


def _symbol(token: str, source: Source, at: int) -> str:
    """The word, |X_0| being X_0."""
    if token in ('"', "|"):
        raise source.error(at, f"the quotation that starts with {token} is never closed: close it.")
    return token[1:-1] if token[0] == "|" and _VARIABLE_ONLY.fullmatch(token[1:-1]) else token


def _without_comments(text: str) -> str:
    """Comments replaced by spaces, so that offsets stay; a semicolon in a quotation begins none."""
    if ";" not in text:
        return text
    return _COMMENT.sub(lambda found: " " * len(found[0]) if found[0][0] == ";" else found[0], text)


def _simple(match: re.Match, source: Source, names: dict[str, Variable], outermost: bool) -> Compare | None:
    """The comparison that one token states; None for a declaration, which goes into `names`. `outermost`: no parenthesis is open."""
    asserted, op, left, number, right, declared, _ = match.groups()
    at = match.start()
    if outermost != bool(asserted or declared):
        raise source.error(at, "an assert or a declaration stands inside another: close the one before." if not outermost else
                           "a comparison stands outside of an assert: write (assert ...) around it.")
    if declared:
        if declared in names:
            raise _declared_twice(declared, at, source)
        names[declared] = Variable(declared[0], int(declared[2:]))
        return None
    if left not in names:
        raise _undeclared(left, match.start("left"), source)
    if right is not None:
        if right not in names:
            raise _undeclared(right, match.start("right"), source)
        return Compare(op, names[left], names[right], at)
    value = float(number)
    if math.isinf(value):
        raise _not_finite(number, match.start("number"), source)
    return Compare(op, names[left], Number(value, number), at)


def _command(statement: _List, source: Source) -> str:
    if not statement.items or not isinstance(statement.items[0], _Atom):
        raise source.error(statement.at, "a statement starts with a command: write (declare-const ...) or (assert ...).")
    return statement.items[0].text


def _declaration(statement: _List, source: Source) -> tuple[Variable, str]:
    """(declare-const X_0 Real) or (declare-fun X_0 () Real)."""
    form = "(declare-const X_0 Real)" if statement.items[0].text == "declare-const" else "(declare-fun X_0 () Real)"
    items = statement.items[1:]
    if statement.items[0].text == "declare-fun" and len(items) == 3 and isinstance(items[1], _List) and not items[1].items:
        items = [items[0], items[2]]
    if len(items) != 2 or not all(isinstance(item, _Atom) for item in items):
        raise source.error(statement.at, f"this declaration is not of the form {form}: write it so.")
    (name, at), (sort, sort_at) = items
    if not _VARIABLE_ONLY.fullmatch(name):
        raise source.error(at, f"'{_short(name)}' is not a VNN-LIB variable: name inputs X_0, X_1, ... and outputs Y_0, Y_1, ....")
    if sort not in ("Real", "Int"):
        raise source.error(sort_at, f"the sort '{_short(sort)}' of {name} is unknown: write Real.")
    return Variable(name[0], int(name[2:])), sort


def _formula(item: _List | _Atom | Compare, source: Source, names: dict[str, Variable]) -> Formula:
    """A formula from its s-expression."""
    if isinstance(item, Compare):
        return item
    if isinstance(item, _Atom):
        if item.text in ("true", "false"):
            return And((), item.at) if item.text == "true" else Or((), item.at)
        raise source.error(item.at, f"'{_short(item.text)}' is no formula: write a comparison such as (<= X_0 1.0).")
    head = item.items[0].text if item.items and isinstance(item.items[0], _Atom) else ""
    arguments = item.items[1:]
    if head in _COMPARISONS:
        return _comparison(head, arguments, item.at, source, names)
    if head not in ("and", "or", "not", "=>"):
        seen = f"'{_short(head)}'" if head else "no operator"
        raise source.error(item.at, f"a formula starts with {seen}: write one of <=, >=, <, >, =, and, or, not, =>.")
    parts = tuple(_formula(part, source, names) for part in arguments)
    if head == "and" or head == "or":
        if not parts:
            raise source.error(item.at, f"'{head}' has no formulas: give it at least one.")
        return And(parts, item.at) if head == "and" else Or(parts, item.at)
    if len(parts) != (1 if head == "not" else 2):
        raise source.error(item.at, f"'{head}' has {len(parts)} formulas: it takes {'one' if head == 'not' else 'two'}.")
    return Not(parts[0], item.at) if head == "not" else Or((Not(parts[0], item.at), parts[1]), item.at)


def _comparison(op: str, arguments: list, at: int, source: Source, names: dict[str, Variable]) -> Formula:
    """One comparison, or (as SMT-LIB has it) a chain (<= a b c) meaning a <= b and b <= c."""
    if len(arguments) < 2:
        raise source.error(at, f"'{op}' has {len(arguments)} terms: it compares at least two.")
    terms = [_term(argument, source, names) for argument in arguments]
    pairs = tuple(Compare(op, left, right, at) for left, right in itertools.pairwise(terms))
    return pairs[0] if len(pairs) == 1 else And(pairs, at)


def _term(item: _List | _Atom | Compare, source: Source, names: dict[str, Variable]) -> Term:
    """An arithmetic term from its s-expression."""
    if isinstance(item, Compare):
        raise source.error(item.at, "a comparison stands where a number is expected: join comparisons with 'and' or 'or'.")
    if isinstance(item, _Atom):
        return _leaf(item, source, names)
    head = item.items[0].text if item.items and isinstance(item.items[0], _Atom) else ""
    if head not in ("+", "-", "*", "/"):
        seen = f"'{_short(head)}'" if head else "no operator"
        raise source.error(item.at, f"a term starts with {seen}: terms are linear, of +, -, * and / by constants.")
    terms = tuple(_term(argument, source, names) for argument in item.items[1:])
    if not terms or (head == "/" and len(terms) < 2):
        raise source.error(item.at, f"'{head}' has {len(terms)} terms: give it {'two' if head == '/' else 'at least one'}.")
    return Apply(head, terms, item.at)


def _leaf(atom: _Atom, source: Source, names: dict[str, Variable]) -> Term:
    if atom.text in names:
        return names[atom.text]
    if _NUMBER_ONLY.fullmatch(atom.text):
        value = float(atom.text)
        if math.isinf(value):
            raise _not_finite(atom.text, atom.at, source)
        return Number(value, atom.text)
    if _LONG_NUMBER.fullmatch(atom.text):
        raise source.error(atom.at, f"the number {_short(atom.text)} is too long: 999 digits on each side of the point, 4 of an exponent.")
    if atom.text.lstrip("+-").lower() in ("nan", "inf", "infinity"):
        raise _not_finite(atom.text, atom.at, source)
    raise _undeclared(atom.text, atom.at, source)


def _undeclared(name: str, at: int, source: Source) -> SpecError:
    if _VARIABLE_ONLY.fullmatch(name):
        return source.error(at, f"{name} is not declared: add (declare-const {name} Real) before its first use.")
    return source.error(at, f"'{_short(name)}' is neither a number nor a declared variable X_i or Y_j: correct it.")


def _not_finite(text: str, at: int, source: Source) -> SpecError:
    return source.error(at, f"the constant {_short(text)} is not a finite number: give a finite bound.")


def _count(source: Source, names: dict[str, Variable], letter: str, what: str) -> int:
    """How many variables the letter has, which must be numbered 0, 1, ... without a gap."""
    indices = {variable.index for variable in names.values() if variable.letter == letter}
    if not indices:
        raise SpecError(f"{source.name} declares no {what}: add (declare-const {letter}_0 Real) and so on.")
    if max(indices) != len(indices) - 1:
        missing = next(i for i in range(len(indices)) if i not in indices)
        seen = f"{letter}_{max(indices)} but not {letter}_{missing}"
        raise SpecError(f"{source.name} declares {seen}: number the {what} 0, 1, 2, ... without a gap.")
    return len(indices)


def _declared_twice(name: str, at: int, source: Source) -> SpecError:
    return source.error(at, f"{name} is declared twice: remove one declaration.")


def _unknown_command(command: str, at: int, source: Source) -> SpecError:
    second = command in _SECOND_EDITION
    hint = "this is VNN-LIB 2.0, and this reader takes 1.0" if second else "write the property with declare-const and assert"
    return source.error(at, f"the command '{_short(command)}' is not part of VNN-LIB 1.0: {hint}.")


def _short(text: str) -> str:
    """At most 40 printable characters of what was seen."""
    shown = "".join(c if c.isprintable() else "?" for c in text[:41])
    return shown if len(shown) <= 40 else shown[:40] + "..."
