"""The built-in corpus: Python's own documentation, the same every time, split once for all."""

import json
from collections import Counter

import pytest

from sra_data.corpus import builtin
from sra_data.corpus.builtin import builtin_records, split_of
from sra_data.corpus.sources import SourceRange, open_source
from sra_data.errors import SourceError


def test_there_are_some_seven_thousand_texts_of_two_megabytes_and_no_two_are_equal():
    records = builtin_records()
    assert 5000 < len(records) < 12000
    assert 1_500_000 < sum(len(record["response"]) for record in records) < 4_000_000
    assert len({record["id"] for record in records}) == len({record["response"] for record in records}) == len(records)
    assert all(record["response"].strip() for record in records)


def test_splits_are_nine_tenths_and_two_twentieths_and_fixed_by_the_name():
    records = builtin_records()
    counts = Counter(record["split"] for record in records)
    assert counts["train"] / len(records) == pytest.approx(0.9, abs=0.02)
    assert counts["dev"] / len(records) == pytest.approx(0.05, abs=0.02)
    assert {split_of("json.dumps"), split_of("os")} <= {"train", "dev", "test"}
    assert all(record["split"] == split_of(record["id"].rpartition(":")[0] or record["id"]) for record in records)
    assert [split_of(name) for name in ("json.dumps", "json.loads", "os.path.join")] == ["train", "train", "train"]


def test_a_prompt_names_the_kind_and_the_signature():
    found = {record["id"]: record for record in builtin_records()}
    assert found["json.dumps"]["prompt"].startswith("Document the Python function json.dumps(obj, *, skipkeys=False,")
    assert found["json.dumps"]["response"].startswith("Serialize ``obj`` to a JSON formatted ``str``.\n\nIf")
    assert found["json"]["prompt"] == "Document the Python module json\n"
    assert found["json.decoder.JSONDecoder.decode"]["prompt"].startswith(
        "Document the Python method json.decoder.JSONDecoder.decode(self, s"
    )
    assert found["topic:assert:1"]["prompt"] == "Explain this topic of the Python language: assert\n"


def test_the_order_is_the_same_when_read_again():
    first = builtin_records()
    builtin._records.cache_clear()
    assert builtin_records() == first


def test_one_split_can_be_opened_and_read_by_range():
    source = open_source("builtin:dev")
    scanned = list(source.scan())
    assert {located.row.split for located in scanned} == {"dev"}
    unit = SourceRange.from_json(json.loads(json.dumps(SourceRange(scanned[10].position, 20).to_json())))
    assert list(source.read(unit)) == scanned[10:20]


def test_definitions_under_an_if_and_in_a_class_in_a_function_are_found_once(tmp_path):
    (tmp_path / "thing.py").write_text(
        '"""A thing."""\nif 1:\n    def f(a, /, b: int = 2):\n        """Does."""\n        class C(dict, x=1):\n'
        '            """Inner."""\n            async def m(self): "Meth"\nelse:\n'
        '    def f(a):\n        """Does not."""\n'
        'def g():\n    """Does."""\n'
    )
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "left_out.py").write_text('"""No."""')
    records = builtin._records(tmp_path)
    assert [(record["id"], record["prompt"]) for record in records] == [
        ("thing", "Document the Python module thing\n"),
        ("thing.f", "Document the Python function thing.f(a, /, b: int=2)\n"),
        ("thing.f.C", "Document the Python class thing.f.C(dict)\n"),
        ("thing.f.C.m", "Document the Python method thing.f.C.m(self)\n"),
    ]


def test_long_topics_are_cut_between_paragraphs():
    pieces = list(builtin._pieces("\n\n".join(["x" * 500] * 5 + ["y" * 3000]) + "\n"))
    assert [len(piece) for piece in pieces] == [1002, 1002, 500, 3000]
    assert "\n\n".join(pieces).replace("\n", "") == "x" * 2500 + "y" * 3000


def test_a_python_without_sources_says_so(tmp_path):
    with pytest.raises(
        SourceError, match=r"no sources of Python's standard library in .*; install them or give --data"
    ):
        builtin._records(tmp_path)
