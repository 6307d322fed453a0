"""A law of both packages: a stranger's file is data. Nothing that could run code out of one is written anywhere."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

# Modules whose files are programs, and calls that run text.
PICKLES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
RUN_TEXT = {"eval", "exec", "compile", "__import__"}
SHELLS = {"system", "popen"}
UNSAFE_YAML = {"load", "load_all", "full_load", "unsafe_load", "unsafe_load_all", "full_load_all"}
FILES = sorted(path for package in ("sra_data", "sra_train") for path in (REPOSITORY / package).rglob("*.py"))


def dotted(node: ast.AST) -> str:
    """torch.load of a call's function; empty where it is none of names."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def wrong_in(tree: ast.AST) -> list[str]:
    """What runs code, as `line: what`."""
    found = []
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        if isinstance(node, ast.ImportFrom):
            names = [str(node.module)]
        found += [f"{node.lineno}: imports {name}" for name in names if name.partition(".")[0] in PICKLES]
        if isinstance(node, ast.Call):
            found += [f"{node.lineno}: {what}" for what in wrong_in_call(node)]
    return found


def wrong_in_call(call: ast.Call) -> list[str]:
    """What is wrong with one call."""
    name = dotted(call.func)
    said = {word.arg: word.value.value for word in call.keywords if isinstance(word.value, ast.Constant)}
    found = [f"{word}=True" for word in ("allow_pickle", "shell", "trust_remote_code") if said.get(word) is True]
    if name in RUN_TEXT or (name.startswith("os.") and name.rpartition(".")[2] in SHELLS):
        found.append(name)
    if name.startswith("yaml.") and name.rpartition(".")[2] in UNSAFE_YAML:
        found.append(name)
    if name in ("torch.load", "load_state_dict_from_url") and said.get("weights_only") is not True:
        found.append(f"{name} without weights_only=True")
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(REPOSITORY).as_posix())
def test_nothing_runs_what_a_file_says(path: Path) -> None:
    assert wrong_in(ast.parse(path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "from cloudpickle import loads",
        "eval(text)",
        "exec(text)",
        "os.system(text)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path, allow_pickle=True)",
        "yaml.load(text)",
        "yaml.unsafe_load(text)",
        "subprocess.run(text, shell=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
    ],
)
def test_the_law_sees_what_it_forbids(line: str) -> None:
    assert len(wrong_in(ast.parse(line))) == 1


@pytest.mark.parametrize("line", ["model.eval()", "re.compile(text)", "model.compile()", "yaml.safe_load(text)"])
def test_the_law_lets_others_be(line: str) -> None:
    assert wrong_in(ast.parse(line)) == []
