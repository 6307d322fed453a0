"""Every message a user may be refused with, read from the source: the page "Messages" of the documentation.

The source is parsed, not imported. A message is what an `SRAError` or one of its kinds is made with; what is put into
it is shown by its name in the source, ‹so›. Pieces that stand elsewhere are looked up: a sentence in a local name or
in a constant, and functions that do nothing but return one (`repair_for`).
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[2]
PACKAGES = ("sra_data", "sra_train")
ROOT = "SRAError"
WORDS_OF_ANCHOR = 9
HANDED_OVER = {"in_one_line": "ModelError"}  # functions that are handed how to say it, as a lambda
PASSED_THROUGH = {"ascii", "len", "list", "max", "min", "repr", "round", "sorted", "str", "sum", "type"}
# Exit codes and what is printed stand in `sra_data/terminal.py`.
INTRODUCTION = """\
# Messages

Whatever a user can mend ends in one line on standard error, `error: …`, and exit code 1: what is wrong, where, with
which value, and what to do. Below is every such line, as it stands in the source; ‹words in angle brackets› are
filled in. Search this page for a few words of what you were told. A traceback is never an answer: it is a fault here,
worth a report.

[Troubleshooting](troubleshooting.md) says more on those that are met most.
"""


@dataclass(frozen=True)
class Message:
    """One of them.

    Attributes:
        kind: Name of the error.
        text: The message, on one line.
        module: Where it is raised, from the repository.
        anchor: Its place on the page; no two have the same.
    """

    kind: str
    text: str
    module: str
    anchor: str


def page() -> str:
    """The page as Markdown."""
    about = kinds_of_error()
    lines = [INTRODUCTION]
    found = messages()
    for kind in sorted({message.kind for message in found}, key=list(about).index):
        lines += [f"## {kind}", "", about[kind], ""]
        for message in found:
            if message.kind == kind:
                lines += [f'<a id="{message.anchor}"></a>`` {message.text} ``', f"  *`{message.module}`*", ""]
    return "\n".join(lines)


def messages() -> list[Message]:
    """All of them, by module."""
    found: list[Message] = []
    taken: dict[str, int] = {}
    kinds, named, (simple, composed) = set(kinds_of_error()), _named_texts(), _sentences_returned()
    for path in sources():
        tree = ast.parse(path.read_text("utf-8"))
        for kind, text in dict.fromkeys(_in_module(tree, kinds, named, simple, composed)):
            anchor = _anchor(text)
            if not anchor:  # another error's message, handed on
                continue
            taken[anchor] = number = taken.get(anchor, 0) + 1
            place = path.relative_to(REPOSITORY).as_posix()
            found.append(Message(kind, text, place, anchor if number == 1 else f"{anchor}-{number}"))
    return found


def sources() -> list[Path]:
    """The modules of both packages."""
    return sorted(path for package in PACKAGES for path in (REPOSITORY / package).rglob("*.py"))


def kinds_of_error() -> dict[str, str]:
    """`SRAError` and everything that is one, with the first line of its docstring."""
    classes = [
        node for path in sources() for node in ast.parse(path.read_text("utf-8")).body if isinstance(node, ast.ClassDef)
    ]
    found: dict[str, str] = {}
    while True:
        new = {
            node.name: (ast.get_docstring(node) or "").partition("\n")[0]
            for node in classes
            if node.name not in found
            and (node.name == ROOT or any(isinstance(base, ast.Name) and base.id in found for base in node.bases))
        }
        if not new:
            return found
        found |= new


# ------------------------------------------------------------------------------------------------- out of the source


@dataclass(frozen=True)
class Scope:
    """Where the words behind a name are looked up: in one function, or in a module, and in the package's functions."""

    tree: ast.AST | None
    constants: dict[str, str]
    returned: dict[str, str]

    def sentence(self, name: str) -> str | None:
        """The words a name stands for, where it is given them in one place."""
        if self.tree is not None:
            values = [
                node.value
                for node in ast.walk(self.tree)
                if isinstance(node, ast.Assign)
                and any(isinstance(one, ast.Name) and one.id == name for one in node.targets)
            ]
            if values:
                return _sentence(values[0], self.outside()) if len(values) == 1 else None
        return self.constants.get(name)

    def outside(self) -> Scope:
        """The same without the function's own names."""
        return Scope(None, self.constants, self.returned)


def _in_module(
    tree: ast.Module,
    kinds: set[str],
    named: dict[str, str],
    returned: dict[str, str],
    composed: dict[str, list[str]],
) -> Iterator[tuple[str, str]]:
    """(kind, text) of every error that is made, in order."""
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    constants = named | dict(_assigned_in(tree, Scope(None, named, returned)))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name) or not node.args:
            continue
        if node.func.id in HANDED_OVER and isinstance(node.args[0], ast.Lambda):
            yield HANDED_OVER[node.func.id], _text(node.args[0].body, Scope(None, constants, returned))
        if node.func.id in kinds:
            inside = [one for one in functions if one.lineno <= node.lineno <= (one.end_lineno or 0)]
            function = max(inside, key=lambda one: one.lineno, default=None)
            text = " ".join(_text(node.args[0], Scope(function, constants, returned)).split())
            for whole in _completed(text, node.args[0], composed):
                yield node.func.id, whole


def _completed(text: str, argument: ast.expr, composed: dict[str, list[str]]) -> list[str]:
    """The message; where all its words are another function's, one for each of those that it returns."""
    if _anchor(text):
        return [text]
    called = [
        one.func.id
        for one in ast.walk(argument)
        if isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in composed
    ]
    return [text.replace(f"‹{name.replace('_', ' ')}›", words) for name in called for words in composed[name]]


def _assigned_in(tree: ast.Module, scope: Scope) -> Iterator[tuple[str, str]]:
    """Names of a module that stand for texts."""
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.JoinedStr | ast.Constant):
            is_text = isinstance(node.value, ast.JoinedStr) or isinstance(node.value.value, str)
            for one in node.targets:
                if isinstance(one, ast.Name) and one.id.isupper() and is_text:
                    yield one.id, _text(node.value, scope)


def _named_texts() -> dict[str, str]:
    """The constants that are a text, by names that stand for one alone in both packages."""
    found: dict[str, set[str]] = {}
    for path in sources():
        for name, text in _assigned_in(ast.parse(path.read_text("utf-8")), Scope(None, {}, {})):
            found.setdefault(name, set()).add(text)
    return {name: next(iter(texts)) for name, texts in found.items() if len(texts) == 1}


def _sentences_returned() -> tuple[dict[str, str], dict[str, list[str]]]:
    """Functions that do nothing but return a sentence, with it; those that choose among several, with them."""
    simple: dict[str, str] = {}
    composed: dict[str, list[str]] = {}
    for path in sources():
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef):
                values = [one.value for one in ast.walk(node) if isinstance(one, ast.Return) and one.value is not None]
                words = [text for value in values if (text := _sentence(value, Scope(None, {}, {}))) is not None]
                if words and len([one for one in node.body if not isinstance(one, ast.Expr)]) == 1:
                    simple[node.name] = words[0]
                elif words:
                    composed[node.name] = [" ".join(text.split()) for text in words]
    return simple, composed


def _sentence(node: ast.expr, scope: Scope) -> str | None:
    """The words of an expression that is a sentence; None for names, numbers and all that is computed."""
    if not isinstance(node, ast.JoinedStr | ast.Constant):
        return None
    text = _text(node, scope)
    return text if re.search(r"[a-z]{3} [a-z`-]", text) else None


def _text(node: ast.expr, scope: Scope) -> str:
    """An expression as the words it gives."""
    match node:
        case ast.Constant(value=value):
            return str(value)
        case ast.JoinedStr(values=values):
            return "".join(_text(value, scope) for value in values)
        case ast.FormattedValue(value=value):
            return _text(value, scope)
        case ast.BinOp(op=ast.Add(), left=ast.JoinedStr() | ast.Constant() | ast.BinOp() as left, right=right):
            return _text(left, scope) + _text(right, scope)
        case ast.Name(id=name) if (words := scope.sentence(name)) is not None:
            return words
        case ast.Call(func=ast.Name(id=name)) if name in scope.returned:
            return scope.returned[name]
        case ast.Call(args=[ast.JoinedStr() as words, *_]):  # a function that only trims it
            return _text(words, scope)
        case ast.IfExp(body=ast.Constant(value=str(one)), orelse=ast.Constant(value=str(other))):
            return " / ".join(words for words in (one, other) if words)
        case _:
            return f"‹{_name_of(node).strip('_').replace('_', ' ')}›"


def _name_of(node: ast.expr) -> str:
    """A word or two for whatever is filled in."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
        case ast.Subscript(slice=ast.Constant(value=str(key))):
            return key
        case ast.Subscript(value=value) | ast.Starred(value=value) | ast.FormattedValue(value=value):
            return _name_of(value)
        case ast.Call(func=ast.Attribute(attr="join"), args=[first, *_]):
            return _name_of(first)
        case ast.Call(func=ast.Name(id=name), args=[first, *_]) if name in PASSED_THROUGH:
            return _name_of(first)
        case ast.Call(func=func):
            return _name_of(func)
        case ast.IfExp(body=body):
            return _name_of(body)
        case ast.BinOp(left=left):
            return _name_of(left)
        case ast.GeneratorExp(elt=elt) | ast.ListComp(elt=elt):
            return _name_of(elt)
        case _:
            return "value"


def _anchor(text: str) -> str:
    """A few of a message's own words, as part of an address."""
    words = re.findall(r"[a-z0-9]+", re.sub(r"‹[^›]*›", " ", text).lower())
    return "-".join(words[:WORDS_OF_ANCHOR])
