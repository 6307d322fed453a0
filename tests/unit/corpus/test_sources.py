"""Sources: every format gives the same rows, any range can be read again alone, and bad input is one clear line."""

import csv
import json
from collections import Counter

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sra_data.corpus import readers
from sra_data.corpus.examples import ALPACA, ALPACA_WITH_INPUT, QUESTION, dev_share_of, parse_columns
from sra_data.corpus.sources import SourceRange, open_source
from sra_data.errors import ConfigError, SourceError

ROWS = [
    {"prompt": f'Question {number}: «é»,\n "quoted" 😀\n', "response": f"Answer, number {number}\r\nand\tmore 東京"}
    for number in range(600)
]


def write(path, rows):
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row, ensure_ascii=row["prompt"][9] == "1") + "\n" for row in rows), "utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1), "utf-8")
    elif path.suffix in (".csv", ".tsv"):
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), delimiter="\t" if path.suffix == ".tsv" else ",")
            writer.writeheader()
            writer.writerows(rows)
    elif path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, row_group_size=250)
    else:
        table = pa.Table.from_pylist(rows)
        make = pa.ipc.new_stream if path.stem == "stream" else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as sink, make(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=170)
    return path


def pairs(source, **options):
    return [(located.row.prompt, located.row.response) for located in source.scan(**options)]


NAMES = ["a.jsonl", "a.json", "a.csv", "a.tsv", "a.parquet", "file.arrow", "stream.arrow"]


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(tmp_path, name):
    source = open_source(str(write(tmp_path / name, ROWS)))
    rows = [located.row for located in source.scan()]
    assert [(row.prompt, row.response) for row in rows] == [(row["prompt"], row["response"]) for row in ROWS]
    assert [row.id for row in rows[:2]] == ["00000000", "00000001"]
    assert {row.split for row in rows} == {None}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("first", "stop"), [(0, 600), (0, 1), (249, 251), (300, 307), (599, 600)])
def test_a_range_is_read_alone_exactly_as_the_scan_gave_it(tmp_path, monkeypatch, name, first, stop):
    monkeypatch.setattr(readers, "CHARACTERS_PER_READ", 512)
    source = open_source(str(write(tmp_path / name, ROWS)))
    scanned = list(source.scan())
    unit = SourceRange.from_json(json.loads(json.dumps(SourceRange(scanned[first].position, stop).to_json())))
    assert list(source.read(unit)) == scanned[first:stop]


def test_a_range_may_reach_over_several_files(tmp_path):
    for part in range(3):
        write(tmp_path / f"part-{part}.jsonl", ROWS[part * 5 : part * 5 + 5])
    source = open_source(str(tmp_path / "part-*.jsonl"))
    scanned = list(source.scan())
    assert [located.row.prompt for located in scanned] == [row["prompt"] for row in ROWS[:15]]
    assert list(source.read(SourceRange(scanned[3].position, 12))) == scanned[3:12]


def test_files_named_after_splits_in_a_folder_give_the_split(tmp_path):
    for name in ("train.jsonl", "validation-00000.jsonl", "test.csv", "other.jsonl"):
        write(tmp_path / name, ROWS[:2])
    (tmp_path / "dataset_info.json").write_text("{}")
    splits = Counter(located.row.split for located in open_source(str(tmp_path)).scan())
    assert splits == {"train": 2, "dev": 2, "test": 2, None: 2}


def test_a_named_file_is_taken_as_it_is_named(tmp_path):
    path = write(tmp_path / "test.jsonl", ROWS[:2])
    assert {located.row.split for located in open_source(str(path)).scan()} == {None}


@pytest.mark.parametrize(
    ("row", "prompt", "response"),
    [
        ({"prompt": "p", "completion": "c"}, "p", "c"),
        ({"instruction": "i", "output": "o"}, ALPACA.format(instruction="i"), "o"),
        ({"instruction": "i", "input": "", "output": "o"}, ALPACA.format(instruction="i"), "o"),
        (
            {"instruction": "i", "context": "{x}", "response": "o"},
            ALPACA_WITH_INPUT.format(instruction="i", input="{x}"),
            "o",
        ),
        ({"instruction": "i", "context": None, "response": "o"}, ALPACA.format(instruction="i"), "o"),
        ({"question": "q", "answer": "a"}, QUESTION.format(question="q"), "a"),
        ({"text": "t"}, "", "t"),
    ],
)
def test_usual_columns_are_found(tmp_path, row, prompt, response):
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    assert pairs(open_source(str(tmp_path / "a.jsonl"))) == [(prompt, response)]


def test_columns_can_be_named(tmp_path):
    row = {"question": "q", "answer": "a", "uid": 7, "fold": "validation", "prompt": "not this"}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    source = open_source(str(tmp_path / "a.jsonl"), "prompt=question,response=answer,id=uid,split=fold")
    (located,) = source.scan()
    assert (located.row.prompt, located.row.response, located.row.id, located.row.split) == ("q", "a", "7", "dev")


def test_an_empty_name_means_no_column(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "t", "id": "x"}\n{"text": "t", "id": "x"}\n')
    assert [located.row.id for located in open_source(str(tmp_path / "a.jsonl"), "id=").scan()] == [
        "00000000",
        "00000001",
    ]


def test_guessed_types_do_not_change_csv_values(tmp_path):
    (tmp_path / "a.csv").write_text("id,prompt,response\n007,1.50,true\n")
    (located,) = open_source(str(tmp_path / "a.csv")).scan()
    assert (located.row.id, located.row.prompt, located.row.response) == ("007", "1.50", "true")


def test_messages_of_both_usual_kinds_are_read(tmp_path):
    rows = [
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "a"}]},
                {"role": "assistant", "content": "b"},
            ]
        },
        {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
    ]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    expected = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert [located.row.messages for located in open_source(str(tmp_path / "a.jsonl")).scan()] == [expected, expected]


def test_lone_surrogates_become_replacement_characters_and_are_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"prompt": "a\\ud800b", "response": "\\ud83d\\ude00\\udc00"}\n')
    counts = Counter()
    assert pairs(open_source(str(tmp_path / "a.jsonl")), counts=counts) == [("a�b", "😀�")]
    assert counts == {"lone_surrogates": 2}


GOOD = '{"prompt": "p", "response": "r"}\n'


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", "", r"a\.jsonl: no rows in this file \(it is empty\); give"),
        ("a.csv", "prompt,response\n", r"a\.csv: no rows"),
        ("a.json", "[]", r"a\.json: no rows"),
        (
            "a.jsonl",
            GOOD + '{"prompt": "p", "respo',
            r"a\.jsonl:2: invalid JSON \(column 17: .*\): \{\"prompt\".*; mend",
        ),
        ("a.jsonl", GOOD + "\n[1]\n", r"a\.jsonl:3: a row must be a JSON object, this is a list: \[1\]"),
        (
            "a.jsonl",
            '{"a": 1, "b": 2}',
            r"a\.jsonl:1: no usual columns .* among a, b; name them, say --columns prompt=",
        ),
        ("a.jsonl", GOOD + '{"prompt": "p", "response": " \\n"}', r"a\.jsonl:2: the response is empty: ' \\n'; .*skip"),
        ("a.jsonl", '{"prompt": 3, "response": "r"}', r"a\.jsonl:1: 'prompt' must be text, this is int: 3"),
        ("a.jsonl", '{"id": [], "text": "r"}', r"'id' must be an id \(text or a whole number\), this is list"),
        ("a.jsonl", '{"split": "x", "text": "r"}', r"a\.jsonl:1: the split 'x' is not known; write train, dev or test"),
        ("a.jsonl", '{"messages": "hello"}', r"a\.jsonl:1: 'messages' must be a list of objects"),
        ("a.jsonl", '{"messages": [{"role": "user", "content": "x"}]}', r"a\.jsonl:1: no assistant turn with text"),
        ("a.json", '[{"text": "a"},\n {"text" "b"}]', r"a\.json:2: invalid JSON .*\"text\" \"b\".*; mend the file"),
        ("a.json", '[{"text": "a"}', r"a\.json:1: invalid JSON \(the array is not closed\)"),
        ("a.csv", 'prompt,response\na,b\n"c,d\n', r"a\.csv:3: invalid CSV \(unexpected end of data\); mend the quotes"),
        ("a.csv", "prompt,response\na,b,c\n", r"a\.csv:2: 3 values under 2 columns"),
        ("a.parquet", "no parquet", r"a\.parquet: cannot be read as Parquet \(.*\); check"),
        ("a.arrow", "no arrow at all", r"a\.arrow: cannot be read as Arrow"),
        ("a.txt", "text", r"a\.txt: the suffix '\.txt' is not known; convert it to one of \.jsonl"),
    ],
)
def test_bad_input_is_one_line_with_place_value_and_remedy(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(SourceError, match=message) as caught:
        pairs(open_source(str(tmp_path / name)))
    assert "\n" not in str(caught.value)


def test_text_that_is_not_utf8_names_the_line(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(GOOD.encode() + b'{"text": "caf\xe9"}\n')
    with pytest.raises(SourceError, match=r"a\.jsonl:2: not UTF-8 \(byte 0xe9 at 13\); convert"):
        pairs(open_source(str(tmp_path / "a.jsonl")))


def test_a_huge_broken_array_is_not_read_to_its_end(tmp_path, monkeypatch):
    monkeypatch.setattr(readers, "CHARACTERS_PER_READ", 64)
    (tmp_path / "a.json").write_text('[{"text": oops}, ' + '{"text": "fine"}, ' * 1000 + "]")
    sizes = []
    original = readers._ArrayReader._fill
    monkeypatch.setattr(readers._ArrayReader, "_fill", lambda self, size: (sizes.append(size), original(self, size)))
    with pytest.raises(SourceError, match="invalid JSON"):
        pairs(open_source(str(tmp_path / "a.json")))
    assert sum(sizes) < 1000


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("./nowhere.jsonl", r"--data \./nowhere\.jsonl: no such file; give a file"),
        ("nowhere/*.jsonl", r"no file matches this pattern"),
        ("builtin:everything", r"no split 'everything'; use builtin"),
        ("a:b:c:d", r"cannot be read as name:split"),
    ],
)
def test_a_source_that_is_not_there_says_what_it_could_be(spec, message):
    with pytest.raises(SourceError, match=message):
        open_source(spec)


def test_an_unreachable_hub_data_set_is_one_line():
    with pytest.raises(
        SourceError, match=r"--data nobody/nothing:train: neither a file .* nor a Hub data set"
    ) as caught:
        open_source("nobody/nothing:train")
    assert "\n" not in str(caught.value)


def test_an_empty_folder_names_the_known_suffixes(tmp_path):
    with pytest.raises(SourceError, match=r"this folder has no \.jsonl, .*\.arrow \(.*\.gz or \.zst behind\) file"):
        open_source(str(tmp_path))


def test_a_hub_data_set_is_read_from_its_arrow_files(tmp_path, monkeypatch):
    import datasets

    cached = datasets.Dataset.from_generator(lambda: iter(ROWS[:5]), cache_dir=str(tmp_path))
    asked = []
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: asked.append((args, kwargs)) or cached)
    source = open_source("someone/things:small:validation")
    assert asked == [(("someone/things", "small"), {"split": "validation"})]
    assert pairs(source) == [(row["prompt"], row["response"]) for row in ROWS[:5]]
    monkeypatch.setattr(datasets, "load_dataset", lambda *args, **kwargs: cached.select(range(2)))
    with pytest.raises(SourceError, match="a slice of a Hub data set cannot be read"):
        open_source("someone/things")


@pytest.mark.parametrize(
    ("columns", "message"),
    [("prompt", "not of the form"), ("mood=x", "no such role"), ("output=a,response=b", "named twice")],
)
def test_columns_that_cannot_be_understood_are_refused(columns, message):
    with pytest.raises(ConfigError, match=message):
        parse_columns(columns)


def test_a_named_column_that_is_missing_lists_the_columns(tmp_path):
    (tmp_path / "a.jsonl").write_text(GOOD)
    with pytest.raises(
        SourceError, match=r"no column 'question' \(named for prompt\); the columns are prompt, response"
    ):
        pairs(open_source(str(tmp_path / "a.jsonl"), "prompt=question"))


def test_invalid_rows_can_be_skipped_and_are_counted(tmp_path):
    bad = ["{", "[]", '{"prompt": "p", "response": ""}', '{"prompt": 1, "response": "r"}', '{"a": 1}']
    (tmp_path / "a.jsonl").write_text(GOOD + "\n".join(bad) + "\n" + GOOD)
    counts = Counter()
    rows = [located.row for located in open_source(str(tmp_path / "a.jsonl")).scan(on_invalid="skip", counts=counts)]
    assert [row.id for row in rows] == ["00000000", "00000006"]
    assert counts == {"invalid_json": 1, "wrong_type": 2, "empty_response": 1, "missing_columns": 1}


def test_rows_of_dev_data_are_numbered_on_and_all_dev(tmp_path):
    path = write(tmp_path / "a.jsonl", ROWS[:2])
    rows = [located.row for located in open_source(str(path), split="dev", first_number=600).scan()]
    assert [(row.id, row.split) for row in rows] == [("00000600", "dev"), ("00000601", "dev")]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    texts=st.lists(st.tuples(st.text(), st.text(min_size=1).filter(str.strip)), min_size=1, max_size=8), data=st.data()
)
def test_arbitrary_text_survives_jsonl_and_json_and_any_range(tmp_path, texts, data):
    rows = [{"prompt": prompt, "response": response} for prompt, response in texts]
    for name, content in (
        ("a.jsonl", "\n".join(json.dumps(row, ensure_ascii=False) for row in rows)),
        ("a.json", json.dumps(rows, ensure_ascii=False)),
    ):
        (tmp_path / name).write_bytes(content.encode("utf-8"))
        source = open_source(str(tmp_path / name))
        scanned = list(source.scan())
        assert [(located.row.prompt, located.row.response) for located in scanned] == texts
        first = data.draw(st.integers(0, len(texts) - 1))
        assert list(source.read(SourceRange(scanned[first].position, len(texts)))) == scanned[first:]


def test_the_split_depends_on_the_prompt_alone(tmp_path):
    rows = [{"prompt": f"p{n // 2}", "response": f"r{n}"} for n in range(400)]
    (tmp_path / "a.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shares = [dev_share_of(located.row) for located in open_source(str(tmp_path / "a.jsonl")).scan()]
    assert shares[0::2] == shares[1::2]
    assert 0.4 < sum(shares) / len(shares) < 0.6
