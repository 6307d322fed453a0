"""Which runs a comparison is made of: pure, equal grids, folders that tell runs apart."""

from __future__ import annotations

import pytest

from sra_data.errors import ConfigError
from sra_train.compare.plan import Entry, Point, entries_of, grid_of, seed_runs, tuning_runs
from sra_train.compare.pool import Slot, last_word, make_slots

KNOWN = ("sft", "sra")


def test_names_are_methods_or_presets_with_their_own_number_of_seeds() -> None:
    entries, tables = entries_of("sft, sra:3,paper", None, seeds=5, known=KNOWN)
    assert [(entry.name, entry.num_seeds) for entry in entries] == [("sft", 5), ("sra", 3), ("paper", 5)]
    assert entries[0].settings == {"method.name": "sft"}
    assert entries[2].settings["method.name"] == "sra"
    assert tables == {}


def test_an_ablation_is_its_tables_and_fine_tuning_each_once() -> None:
    entries, tables = entries_of(None, "paper", seeds=2, known=KNOWN)
    names = [entry.name for entry in entries]
    assert names[0] == "sft"
    assert len(names) == len(set(names))
    assert {name for rows in tables.values() for name in rows} == set(names) - {"sft"}
    assert [len(rows) for rows in tables.values()] == [5, 4]


@pytest.mark.parametrize(
    ("methods", "ablation", "seeds", "message"),
    [
        ("sft,nonsense", None, 5, r"nonsense: neither a method \(sft, sra\) nor a preset \(paper, .*--list-methods"),
        ("sft:0", None, 5, "--methods sft:0: 0 is no positive number of seeds"),
        ("sft:two", None, 5, "two is no positive number of seeds"),
        ("sft:", None, 5, "nothing is no positive number of seeds"),
        ("sft", None, 0, "--seeds 0: 0 is no positive number of seeds"),
        ("sft", None, -3, "-3 is no positive number of seeds"),
        ("sft,sra,sft:2", None, 5, "sft is named twice"),
        (",", None, 5, "names nothing"),
        ("sft", "paper", 5, "leave one of them out"),
        (None, "mine", 5, "--ablation mine: no such ablation; choose one of paper"),
    ],
)
def test_what_names_nothing_is_refused_in_one_line(methods, ablation, seeds, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        entries_of(methods, ablation, seeds=seeds, known=KNOWN)
    assert "\n" not in str(caught.value)


def test_the_grid_is_every_rate_with_every_clip() -> None:
    assert grid_of((1e-3, 3e-3), ()) == [Point(1e-3), Point(3e-3)]
    assert len(grid_of((1e-3, 3e-3), (0.5, 1.0, 2.0))) == 6
    for rates, clips, message in (
        ((), (), "no rate given"),
        ((0.0,), (), "--rates: 0 is not a positive number"),
        ((float("nan"),), (), "--rates: nan is not a positive number"),
        ((1e-3,), (-1.0,), "--clips: -1 is not a positive number"),
        ((1e-3, 1e-3), (), "two of them are the same"),
    ):
        with pytest.raises(ConfigError, match=message):
            grid_of(rates, clips)


def test_runs_have_folders_of_their_own_and_whole_tuning_runs_are_the_first_seeds() -> None:
    grid = grid_of((1e-3, 3e-3), (0.5, 1.0))
    entry = Entry("sft", {}, 3)
    whole = tuning_runs("sft", grid, seed=42, steps=None)
    short = tuning_runs("sft", grid, seed=42, steps=10)
    seeds = seed_runs(entry, grid[2], first_seed=42)
    assert [run.seed for run in seeds] == [42, 43, 44]
    assert seeds[0] == whole[2]
    assert seeds[0] not in short
    every = {run.folder for run in [*whole, *short, *seeds]}
    assert len(every) == len(whole) + len(short) + len(seeds) - 1
    assert str(seeds[1].folder) == "runs/sft/lr-0.003-clip-0.5/seed-43"


def test_where_there_is_nothing_to_choose_the_run_is_whole() -> None:
    assert tuning_runs("sft", [Point(1e-3)], seed=1, steps=10) == tuning_runs("sft", [Point(1e-3)], seed=1, steps=None)


def test_a_slot_is_a_gpu_or_a_core() -> None:
    assert make_slots(None, devices=[], cores=4) == [Slot(None, 1)] * 4
    assert make_slots(2, devices=[], cores=4) == [Slot(None, 2)] * 2
    assert make_slots(None, devices=["3", "5"], cores=16) == [Slot("3", 8), Slot("5", 8)]
    assert [slot.device for slot in make_slots(3, devices=["3", "5"], cores=16)] == ["3", "5", "3"]
    with pytest.raises(ConfigError, match="--workers 0: not a positive number"):
        make_slots(0, devices=[], cores=4)


def test_a_slot_says_which_device_and_how_many_threads(monkeypatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    found = Slot("5", 3).environment()
    assert (found["CUDA_VISIBLE_DEVICES"], found["OMP_NUM_THREADS"]) == ("5", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    assert Slot(None, 3).environment()["OMP_NUM_THREADS"] == "7"


def test_the_last_word_of_a_process_is_its_error_or_how_it_ended(tmp_path) -> None:
    log = tmp_path / "log"
    assert last_word(log, -9) == "ended with -9: said nothing"  # killed before it could open its log
    log.write_text("train: 1 of 3\nerror: no room\n")
    assert last_word(log, 1) == "no room"
    log.write_text("Killed\n")
    assert last_word(log, 137) == "ended with 137: Killed"
