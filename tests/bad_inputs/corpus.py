"""Files of examples that are none: for `align`, which reads what is given, in every form it takes."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import ALIGN, Case, usage, written
from tests.crash.world import World

ROW = {"prompt": "p", "response": "r"}
LINE = json.dumps(ROW) + "\n"
LONG = "n" * 300
Says = tuple[str, ...]


def _messages(*turns: Any) -> str:
    return json.dumps({"messages": list(turns)}) + "\n"


def _parquet(**columns: Any) -> bytes:
    return _table(columns, "parquet")


def _arrow(**columns: Any) -> bytes:
    return _table(columns, "arrow")


def _table(columns: dict[str, Any], kind: str) -> bytes:
    """A file of those columns; made where it is needed, for Arrow is not imported before the fork."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, sink = pa.table(columns), io.BytesIO()
    if kind == "parquet":
        pq.write_table(table, sink)
    else:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    return sink.getvalue()


def _not_utf8() -> Any:
    import pyarrow as pa

    broken = pa.array([b"ok", b"\xff\xfe\xfd"], pa.binary())
    return pa.Array.from_buffers(pa.string(), 2, broken.buffers())


# What is wrong: the file's name, its content (or what makes it), words of the answer.
FILES: dict[str, tuple[str, str | bytes | Callable[[], bytes], Says]] = {
    # JSON lines
    "nothing": ("bad.jsonl", "", ("bad.jsonl", "empty")),
    "empty lines": ("bad.jsonl", "\n\n  \n\t\n", ("bad.jsonl", "empty")),
    "a byte order mark alone": ("bad.jsonl", b"\xef\xbb\xbf", ("bad.jsonl", "empty")),
    "prose": ("bad.jsonl", "Dear reader,\n", ("bad.jsonl:1", "JSON")),
    "a line that is cut": ("bad.jsonl", LINE + LINE[:-9], ("bad.jsonl:2", "JSON")),
    "two rows in one line": ("bad.jsonl", LINE.strip() + LINE, ("bad.jsonl:1", "Extra data")),
    "a row over several lines": ("bad.jsonl", json.dumps(ROW, indent=1), ("bad.jsonl:1", "JSON")),
    "single quotes": ("bad.jsonl", str(ROW), ("bad.jsonl:1", "JSON")),
    "a row that is null": ("bad.jsonl", LINE + "null\n", ("bad.jsonl:2", "NoneType")),
    "a row that is a list": ("bad.jsonl", '["p", "r"]\n', ("bad.jsonl:1", "list")),
    "a row that is a number": ("bad.jsonl", f"{'7' * 5000}\n", ("bad.jsonl:1",)),
    "a row without columns": ("bad.jsonl", "{}\n", ("bad.jsonl:1", "columns")),
    "other columns": ("bad.jsonl", '{"frage": "a", "antwort": "b"}\n', ("frage, antwort", "--columns")),
    "columns in capitals": ("bad.jsonl", '{"Prompt": "a", "Response": "b"}\n', ("Prompt, Response", "--columns")),
    "a prompt alone": ("bad.jsonl", '{"prompt": "a"}\n', ("bad.jsonl:1", "prompt")),
    "another row's columns": ("bad.jsonl", LINE + '{"prompt": "a", "answer": "b"}\n', ("bad.jsonl:2", "columns")),
    "a response of spaces": ("bad.jsonl", '{"prompt": "a", "response": " \\n\\t"}\n', ("bad.jsonl:1", "empty")),
    "a response that is null": ("bad.jsonl", '{"prompt": "a", "response": null}\n', ("bad.jsonl:1", "response")),
    "a response that is no number": ("bad.jsonl", '{"prompt": "a", "response": NaN}\n', ("bad.jsonl:1", "response")),
    "a response of parts": ("bad.jsonl", '{"prompt": "a", "response": ["b"]}\n', ("bad.jsonl:1", "list")),
    "a prompt that is a truth": ("bad.jsonl", '{"prompt": true, "response": "b"}\n', ("bad.jsonl:1", "prompt")),
    "an id that is empty": ("bad.jsonl", '{"id": "", "prompt": "a", "response": "b"}\n', ("bad.jsonl:1", "id")),
    "an id that is a fraction": ("bad.jsonl", '{"id": 1.5, "prompt": "a", "response": "b"}\n', ("bad.jsonl:1", "id")),
    "an id that is an object": ("bad.jsonl", '{"id": {}, "prompt": "a", "response": "b"}\n', ("bad.jsonl:1", "id")),
    "two rows of one id": ("bad.jsonl", '{"id": 7, "prompt": "a", "response": "b"}\n' * 2, ("bad.jsonl", "id")),
    "a split that is none": (
        "bad.jsonl",
        '{"split": "holdout", "prompt": "a", "response": "b"}\n',
        ("bad.jsonl:1", "holdout", "train, dev or test"),
    ),
    "a split that is a number": ("bad.jsonl", '{"split": 3, "prompt": "a", "response": "b"}\n', ("bad.jsonl:1", "3")),
    "test rows alone": ("bad.jsonl", '{"split": "test", "prompt": "a", "response": "b"}\n', ("test",)),
    "an instruction without output": ("bad.jsonl", '{"instruction": "a", "input": ""}\n', ("bad.jsonl:1", "columns")),
    "an input that is a number": (
        "bad.jsonl",
        '{"instruction": "a", "input": 3, "output": "b"}\n',
        ("bad.jsonl:1", "input"),
    ),
    "a text that is empty": ("bad.jsonl", '{"text": ""}\n', ("bad.jsonl:1", "empty")),
    "latin-1": ("bad.jsonl", LINE.replace('p"', 'é"').encode("latin-1"), ("bad.jsonl:1", "UTF-8")),
    "UTF-16": ("bad.jsonl", LINE.encode("utf-16"), ("bad.jsonl:1", "UTF-8")),
    "bytes of a picture": ("bad.jsonl", b"\x89PNG\r\n\x1a\n\x00\x00", ("bad.jsonl:1", "UTF-8")),
    "zeros": ("bad.jsonl", b"\x00" * 512, ("bad.jsonl:1", "JSON")),
    "a gzip file under another name": ("bad.jsonl", gzip.compress(LINE.encode(), mtime=0), ("bad.jsonl:1", "UTF-8")),
    "thousands of brackets": ("bad.jsonl", "[" * 100_000 + "\n", ("bad.jsonl:1", "nested too deep")),
    "thousands of objects in each other": ("bad.jsonl", '{"a":' * 50_000 + "\n", ("bad.jsonl:1", "nested too deep")),
    "control characters": ("bad.jsonl", '{"prompt": "a\x01", "response": "b"}\n', ("bad.jsonl:1", "JSON")),
    # chats
    "a chat without turns": ("bad.jsonl", _messages(), ("bad.jsonl:1", "messages")),
    "a chat that is text": ("bad.jsonl", '{"messages": "hello"}\n', ("bad.jsonl:1", "messages")),
    "a chat of texts": ("bad.jsonl", _messages("hello", "world"), ("bad.jsonl:1", "messages")),
    "a turn without a role": ("bad.jsonl", _messages({"content": "hello"}), ("bad.jsonl:1", "role")),
    "a turn whose role is a number": ("bad.jsonl", _messages({"role": 1, "content": "a"}), ("bad.jsonl:1", "role")),
    "a turn whose content is a number": (
        "bad.jsonl",
        _messages({"role": "assistant", "content": 5}),
        ("bad.jsonl:1", "content"),
    ),
    "a chat without an assistant": ("bad.jsonl", _messages({"role": "user", "content": "a"}), ("assistant",)),
    "an assistant that is silent": (
        "bad.jsonl",
        _messages({"role": "user", "content": "a"}, {"role": "assistant", "content": " "}),
        ("bad.jsonl:1", "assistant"),
    ),
    "tools that are no list": (
        "bad.jsonl",
        json.dumps({"messages": [{"role": "assistant", "content": "a"}], "tools": "hammer"}) + "\n",
        ("bad.jsonl:1", "tools"),
    ),
    # JSON arrays
    "an array that is not closed": ("bad.json", f"[{LINE},{LINE}", ("bad.json", "JSON")),
    "an array of numbers": ("bad.json", "[1, 2, 3]", ("bad.json:1", "int")),
    "an array of nothing": ("bad.json", "[]", ("bad.json", "empty")),
    "an array and more": ("bad.json", f"[{LINE}]\n[{LINE}]", ("bad.json:3", "more behind the end")),
    "an array without commas": ("bad.json", f"[{LINE} x {LINE}]", ("bad.json", "JSON")),
    "an object of columns": ("bad.json", json.dumps({"prompt": ["a"], "response": ["b"]}), ("bad.json:1", "list")),
    "an array that is not UTF-8": ("bad.json", b'[{"prompt": "\xff", "response": "b"}]', ("bad.json", "UTF-8")),
    "an array nested too deep": ("bad.json", '[{"prompt": ' + "[" * 100_000, ("bad.json", "nested too deep")),
    # CSV
    "a header alone": ("bad.csv", "prompt,response\n", ("bad.csv", "empty")),
    "a header of other columns": ("bad.csv", "a,b\n1,2\n", ("bad.csv:2", "a, b", "--columns")),
    "too few values": ("bad.csv", "prompt,response\na,b\nc\n", ("bad.csv:3", "1 values under 2 columns")),
    "too many values": ("bad.csv", "prompt,response\na,b,c\n", ("bad.csv:2", "3 values under 2 columns")),
    "a quote that is not closed": ("bad.csv", 'prompt,response\n"a,b\nc,d\n', ("bad.csv:2", "CSV")),
    "a quote in a value": ("bad.csv", 'prompt,response\n"a"b,c\n', ("bad.csv:2", "CSV")),
    "a header with a quote that is not closed": ("bad.csv", '"prompt,response\na,b\n', ("bad.csv:1", "CSV")),
    "two columns of one name": (
        "bad.csv",
        "prompt,response,response\na,b,c\n",
        ("bad.csv:1", "two columns", "response"),
    ),
    "a table in latin-1": ("bad.csv", "prompt,response\né,b\n".encode("latin-1"), ("bad.csv:2", "UTF-8")),
    "a header in latin-1": ("bad.csv", "prompt,réponse\na,b\n".encode("latin-1"), ("bad.csv:1", "UTF-8")),
    "a table in UTF-16": ("bad.csv", "prompt,response\na,b\n".encode("utf-16"), ("bad.csv:1", "UTF-8")),
    "commas in place of tabs": ("bad.tsv", "prompt,response\na,b\n", ("bad.tsv:2", "columns")),
    "semicolons in place of commas": ("bad.csv", "prompt;response\na;b\n", ("bad.csv:2", "prompt;response")),
    "a cell that is empty": ("bad.csv", "prompt,response\na,\n", ("bad.csv:2", "empty")),
    # Parquet and Arrow
    "text that is called Parquet": ("bad.parquet", LINE, ("bad.parquet", "Parquet")),
    "Parquet of no byte": ("bad.parquet", b"", ("bad.parquet", "Parquet")),
    "Parquet that is cut": ("bad.parquet", lambda: _parquet(**_pair())[:-40], ("bad.parquet", "Parquet")),
    "Parquet whose pages are zeros": ("bad.parquet", lambda: _zeroed(_parquet(**_pair())), ("bad.parquet",)),
    "Parquet without rows": ("bad.parquet", lambda: _parquet(prompt=[], response=[]), ("bad.parquet", "empty")),
    "Parquet of other columns": ("bad.parquet", lambda: _parquet(a=["x"], b=["y"]), ("bad.parquet", "a, b")),
    "Parquet of numbers": ("bad.parquet", lambda: _parquet(prompt=["a"], response=[3]), ("row 1", "response")),
    "Parquet with a null": ("bad.parquet", lambda: _parquet(prompt=["a"], response=[None]), ("row 1", "response")),
    "Parquet of bytes": ("bad.parquet", lambda: _parquet(prompt=["a"], response=[b"b"]), ("row 1", "response")),
    "Parquet that is not UTF-8": (
        "bad.parquet",
        lambda: _parquet(prompt=["a", "b"], response=_not_utf8()),
        ("bad.parquet: row 2", "UTF-8"),
    ),
    "text that is called Arrow": ("bad.arrow", LINE, ("bad.arrow", "Arrow")),
    "Arrow of no byte": ("bad.arrow", b"", ("bad.arrow",)),
    "Arrow that is cut": ("bad.arrow", lambda: _arrow(**_pair())[:200], ("bad.arrow",)),
    "Arrow of a magic word": ("bad.arrow", b"ARROW1\x00\x00", ("bad.arrow", "Arrow")),
    "Arrow that is not UTF-8": (
        "bad.arrow",
        lambda: _arrow(prompt=["a", "b"], response=_not_utf8()),
        ("bad.arrow: row 2", "UTF-8"),
    ),
    # compressed
    "text that is called gzip": ("bad.jsonl.gz", LINE, ("bad.jsonl.gz", "gzip")),
    "gzip that is cut": ("bad.jsonl.gz", gzip.compress(os.urandom(4096).hex().encode())[:999], ("bad.jsonl.gz",)),
    "gzip of nothing": ("bad.jsonl.gz", gzip.compress(b"", mtime=0), ("bad.jsonl.gz", "empty")),
    "gzip of no byte": ("bad.jsonl.gz", b"", ("bad.jsonl.gz",)),
    "gzip of prose": ("bad.jsonl.gz", gzip.compress(b"Dear reader,", mtime=0), ("bad.jsonl.gz:1", "JSON")),
    "text that is called zstd": ("bad.csv.zst", "prompt,response\na,b\n", ("bad.csv.zst", "zstd")),
    "a table that is compressed again": ("bad.parquet.gz", gzip.compress(b"PAR1", mtime=0), ("bad.parquet.gz", ".gz")),
    # names
    "a suffix that is not known": ("bad.xlsx", b"PK\x03\x04", ("bad.xlsx", ".xlsx")),
    "no suffix": ("bad", LINE, ("bad", "suffix")),
}


def _pair() -> dict[str, list[str]]:
    return {"prompt": ["a", "b"], "response": ["c", "d"]}


def _zeroed(content: bytes) -> bytes:
    return content[:4] + b"\0" * 60 + content[64:]


def _file(wrong: str) -> Case:
    name, content, says = FILES[wrong]

    def write(place: Path, world: World) -> None:
        written(name, content() if callable(content) else content)(place, world)

    return Case(f"corpus: {wrong}", f"{ALIGN} --data {name}", says, write)


def _folder_with_one_bad_file(place: Path, world: World) -> None:
    written("many/a.jsonl", LINE)(place, world)
    written("many/deep/b.jsonl", "nonsense\n")(place, world)


def _unreadable(place: Path, world: World) -> None:
    written("secret.jsonl", LINE)(place, world)
    (place / "secret.jsonl").chmod(0)


def _locked_folder(place: Path, world: World) -> None:
    written("secret/a.jsonl", LINE)(place, world)
    (place / "secret").chmod(0)


def _dangling(place: Path, world: World) -> None:
    (place / "link.jsonl").symlink_to("nowhere.jsonl")


def _loop(place: Path, world: World) -> None:
    (place / "loop.jsonl").symlink_to("loop.jsonl")


def _pipe(place: Path, world: World) -> None:
    os.mkfifo(place / "pipe.jsonl")


def _two_files(place: Path, world: World) -> None:
    written("train/a.jsonl", LINE)(place, world)
    written("train/b.jsonl", "")(place, world)


def _dev(place: Path, world: World) -> None:
    written("train.jsonl", LINE)(place, world)
    written("dev.jsonl", '{"prompt": "p"}\n')(place, world)


CASES: list[Case] = [
    *map(_file, FILES),
    *usage(
        "corpus",
        {
            "a file that is not there": (f"{ALIGN} --data nowhere.jsonl", ("nowhere.jsonl", "no such file")),
            "a folder that is not there": (f"{ALIGN} --data ./nowhere/", ("./nowhere/", "no such file")),
            "no name": (f"{ALIGN} --data ''", ("--data",)),
            "spaces": (f"{ALIGN} --data '  '", ("--data",)),
            "a name too long": (f"{ALIGN} --data {LONG}.jsonl", ("nnn",)),
            "a pattern that nothing fits": (f"{ALIGN} --data 'none-*.jsonl'", ("none-*.jsonl", "no file matches")),
            "a pattern that is none": (f"{ALIGN} --data '[.jsonl'", ("[.jsonl",)),
            "a split that the built-in corpus lacks": (f"{ALIGN} --data builtin:eval", ("builtin:eval", "builtin:dev")),
            "a data set out of reach": (f"{ALIGN} --data someone/nothing:train", ("someone/nothing", "Hub")),
            "a data set of three colons": (f"{ALIGN} --data a/b:c:d:e", ("a/b:c:d:e", "name:split")),
            "a split of nothing": (f"{ALIGN} --data :train", (":train", "name:split")),
            "a data set at an address": (f"{ALIGN} --data https://example.org/a.zip", ("example.org",)),
            "a device": (f"{ALIGN} --data /dev/null", ("/dev/null",)),
            "a model's folder": (f"{ALIGN} --data TEACHER", ("teacher",)),
        },
    ),
    Case("corpus: a folder without data", f"{ALIGN} --data many", ("many", ".jsonl"), written("many/readme.md", "x")),
    Case(
        "corpus: a folder of hidden files", f"{ALIGN} --data many", ("many", ".jsonl"), written("many/.a.jsonl", LINE)
    ),
    Case("corpus: a folder that is called a file", f"{ALIGN} --data a.jsonl", ("a.jsonl",), written("a.jsonl/b", "x")),
    Case("corpus: one bad file of two", f"{ALIGN} --data many", ("deep/b.jsonl:1",), _folder_with_one_bad_file),
    Case("corpus: one empty file of two", f"{ALIGN} --data train", ("train/b.jsonl", "empty"), _two_files),
    Case(
        "corpus: a file that may not be read",
        f"{ALIGN} --data secret.jsonl",
        ("secret.jsonl",),
        _unreadable,
        is_nobody=True,
    ),
    Case(
        "corpus: a folder that may not be read", f"{ALIGN} --data secret", ("secret",), _locked_folder, is_nobody=True
    ),
    Case("corpus: a link to nothing", f"{ALIGN} --data link.jsonl", ("link.jsonl",), _dangling),
    Case("corpus: a link to itself", f"{ALIGN} --data loop.jsonl", ("loop.jsonl",), _loop),
    Case("corpus: a pipe", f"{ALIGN} --data pipe.jsonl", ("pipe.jsonl",), _pipe),
    Case(
        "corpus: a bad row for development",
        f"{ALIGN} --data train.jsonl --dev-data dev.jsonl",
        ("dev.jsonl:1", "columns"),
        _dev,
    ),
    Case(
        "corpus: nothing but invalid rows, left out",
        f"{ALIGN} --data bad.jsonl --on-invalid skip",
        ("bad.jsonl", "no example is left"),
        written("bad.jsonl", "nonsense\n{}\n[]\n"),
    ),
    Case(
        "corpus: a named column that one row lacks",
        f"{ALIGN} --data bad.jsonl --columns prompt=q,response=a",
        ("bad.jsonl:2", "'a'"),
        written("bad.jsonl", '{"q": "x", "a": "y"}\n{"q": "x"}\n'),
    ),
]
