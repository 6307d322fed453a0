"""The built-in corpus: Python's own documentation, read from the standard library that is installed.

It needs no download and no account, it is real English about real code, and it is the same on every machine with the
same Python. Source files are parsed, never imported. A row is a docstring of a module, class or function, with a prompt
that names it and its signature, or a piece of one of `pydoc`'s topics.

The split is fixed by a hash of the qualified name: of 20 rows about 18 train, 1 dev, 1 test; pieces of one topic stay
together. Identical docstrings are kept once, at their first place, so that no test row stands in train word for word.
"""

from __future__ import annotations

import ast
import os
import sysconfig
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import xxhash

from sra_data.errors import SourceError

BUILTIN_SPLITS = ("train", "dev", "test")
# Tests, demonstrations and editors: no documentation of the language.
LEFT_OUT = frozenset(
    {"__pycache__", "dist-packages", "ensurepip", "idlelib", "lib2to3", "site-packages", "test", "tests", "turtledemo"}
)
CHARACTERS_PER_TOPIC_PIECE = 1200
DEFINITIONS = (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def builtin_records(split: str | None = None) -> list[dict[str, str]]:
    """The rows of the built-in corpus (of one split): id, prompt, response, split.

    Takes some seconds the first time in a process.

    Raises:
        SourceError: This Python came without the sources of its standard library.
    """
    folder = Path(sysconfig.get_paths()["stdlib"])
    return [dict(record) for record in _records(folder) if split is None or record["split"] == split]


def split_of(name: str) -> str:
    """The split of a qualified name: train 90 %, dev 5 %, test 5 %."""
    number = xxhash.xxh3_64_intdigest(name.encode("utf-8")) % 20
    return {18: "dev", 19: "test"}.get(number, "train")


@lru_cache(maxsize=2)
def _records(folder: Path) -> tuple[dict[str, str], ...]:
    records: list[dict[str, str]] = []
    names: set[str] = set()
    texts: set[str] = set()
    for name, prompt, response, split in _documents(folder):
        if name in names or response in texts:
            continue
        names.add(name)
        texts.add(response)
        records.append({"id": name, "prompt": prompt, "response": response, "split": split})
    if not records:
        raise SourceError(
            f"built-in corpus: no sources of Python's standard library in {folder}; install them or give --data"
        )
    return tuple(records)


def _documents(folder: Path) -> Iterator[tuple[str, str, str, str]]:
    """Every (qualified name, prompt, response, split), in the order of module names and then of the source."""
    for module, path in _modules(folder):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in old code of the library are not ours to report
            tree = ast.parse(path.read_bytes(), filename=str(path))
        if module == "pydoc_data.topics":
            yield from _topics(tree)
            continue
        docstring = ast.get_docstring(tree)
        if docstring:
            yield module, f"Document the Python module {module}\n", docstring, split_of(module)
        yield from _definitions(tree, module, inside_class=False)


def _modules(folder: Path) -> list[tuple[str, Path]]:
    """Every module of the library, by name; folders that are left out are not entered."""
    found = []
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name.isidentifier() and name not in LEFT_OUT]
        package = Path(root).relative_to(folder).parts
        for file in files:
            name, _, suffix = file.partition(".")
            if suffix == "py" and name.isidentifier():
                parts = package if name == "__init__" and package else (*package, name)
                found.append((".".join(parts), Path(root) / file))
    return sorted(found)


def _definitions(node: ast.AST, name: str, *, inside_class: bool) -> Iterator[tuple[str, str, str, str]]:
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, DEFINITIONS):
            if isinstance(child, ast.stmt | ast.ExceptHandler | ast.match_case):  # a definition may stand under an if
                yield from _definitions(child, name, inside_class=inside_class)
            continue
        child_name = f"{name}.{child.name}"
        docstring = ast.get_docstring(child)
        if docstring:
            prompt = f"Document the Python {_kind(child, inside_class)} {child_name}{_signature(child)}\n"
            yield child_name, prompt, docstring, split_of(child_name)
        yield from _definitions(child, child_name, inside_class=isinstance(child, ast.ClassDef))


def _kind(definition: Definition, inside_class: bool) -> str:
    if isinstance(definition, ast.ClassDef):
        return "class"
    return "method" if inside_class else "function"


def _signature(definition: Definition) -> str:
    if isinstance(definition, ast.ClassDef):
        bases = ", ".join(ast.unparse(base) for base in definition.bases)
        return f"({bases})" if bases else ""
    return f"({ast.unparse(definition.args)})"


def _topics(tree: ast.Module) -> Iterator[tuple[str, str, str, str]]:
    """The pieces of every topic in `pydoc_data.topics`, a module that holds one dictionary of texts."""
    dictionaries = [node.value for node in tree.body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for dictionary in dictionaries:
        if not isinstance(dictionary, ast.Dict):
            continue
        for topic, text in sorted(ast.literal_eval(dictionary).items()):
            for number, piece in enumerate(_pieces(text), 1):
                part = f", part {number}" if number > 1 else ""
                prompt = f"Explain this topic of the Python language: {topic}{part}\n"
                yield f"topic:{topic}:{number}", prompt, piece, split_of(f"topic:{topic}")


def _pieces(text: str) -> Iterator[str]:
    """Cut a long text between paragraphs; a piece is as long as one longer paragraph or up to the limit."""
    piece = ""
    for paragraph in text.strip("\n").split("\n\n"):
        if piece and len(piece) + len(paragraph) > CHARACTERS_PER_TOPIC_PIECE:
            yield piece.strip("\n")
            piece = ""
        piece += f"{paragraph}\n\n"
    if piece.strip():
        yield piece.strip("\n")
