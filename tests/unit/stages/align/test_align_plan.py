"""The scan: what changes the fingerprint of a corpus, and where its parts are cut."""

from collections import Counter

import pytest

from sra_data.corpus.sources import Source, open_source
from sra_data.stages.align import plan
from sra_data.terminal import Reporter
from tests.unit.stages.align_worlds import write_jsonl

ROW = {"id": "a", "prompt": "ask", "response": "answer", "split": "train"}
CHAT = {"id": "a", "messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]}
TOOL = {"type": "function", "function": {"name": "f", "parameters": {}}}


def planned(folder, values: list[dict], **options) -> plan.CorpusPlan:
    source: Source = open_source(str(write_jsonl(folder / "rows.jsonl", values)))
    return plan.scan([source], on_invalid="fail", dev_share=0.0, reporter=Reporter(), **options)


@pytest.mark.parametrize(
    ("row", "changes"),
    [
        (ROW, {"id": "b"}),
        (ROW, {"prompt": "asks"}),
        (ROW, {"response": "answers"}),
        (ROW, {"split": "dev"}),
        (ROW, {"prompt": "aska", "response": "nswer"}),
        (CHAT, {"messages": [CHAT["messages"][0], {"role": "assistant", "content": "answers"}]}),
        (CHAT, {"messages": [{"role": "system", "content": "ask"}, CHAT["messages"][1]]}),
        (CHAT, {"tools": [TOOL]}),
    ],
    ids=lambda value: ", ".join(value),
)
def test_whatever_the_shards_hold_of_a_row_changes_the_fingerprint(tmp_path, row, changes) -> None:
    assert planned(tmp_path, [row]).fingerprint == planned(tmp_path, [dict(row)]).fingerprint
    assert planned(tmp_path, [row]).fingerprint != planned(tmp_path, [{**row, **changes}]).fingerprint


@pytest.mark.parametrize("limit", ["RESPONSE_BYTES_PER_PART", "TEXT_BYTES_PER_PART", "ROWS_PER_PART"])
def test_a_part_holds_as_many_neighbours_as_fit_each_of_its_limits(tmp_path, monkeypatch, limit) -> None:
    values = [{"prompt": "p" * (n % 7), "response": "r" * (1 + n % 5)} for n in range(60)]
    monkeypatch.setattr(plan, limit, 17)
    sizes = {
        "RESPONSE_BYTES_PER_PART": [len(row["response"]) for row in values],
        "TEXT_BYTES_PER_PART": [len(row["prompt"]) + len(row["response"]) for row in values],
        "ROWS_PER_PART": [1] * len(values),
    }[limit]
    units = planned(tmp_path, values).units
    assert [unit.start for unit in units] == [0, *(unit.stop for unit in units[:-1])]
    assert units[-1].stop == len(values)
    for unit in units:
        assert sum(sizes[unit.start : unit.stop]) <= 17
        assert unit is units[-1] or sum(sizes[unit.start : unit.stop + 1]) > 17


@pytest.mark.parametrize(("most", "are_kept"), [(17, True), (16, False)])
def test_rows_are_kept_only_while_they_are_few(tmp_path, monkeypatch, most, are_kept) -> None:
    """A corpus of any size is scanned in the memory of a few rows."""
    monkeypatch.setattr(plan, "KEPT_TEXT_BYTES", most)
    values = [
        {"prompt": "pp", "response": "rrr"},
        {"prompt": "p", "response": "rrrrr"},
        {"prompt": "", "response": "r" * 6},
    ]
    kept = planned(tmp_path, values).rows
    assert (kept is not None) == are_kept
    if kept is not None:
        assert [row.response for row, _ in kept] == [one["response"] for one in values]


def test_a_row_that_alone_is_more_than_a_part_stands_alone(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(plan, "TEXT_BYTES_PER_PART", 10)
    values = [{"prompt": "p", "response": "r" * size} for size in (3, 3, 50, 3, 3)]
    units = planned(tmp_path, values).units
    assert Counter(unit.stop - unit.start for unit in units) == {2: 2, 1: 1}
