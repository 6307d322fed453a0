"""Imported pages are those of `cache-teacher`, as far as a capture goes; what is not in it is named, not made up."""

from __future__ import annotations

import errno
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from sra_data.captures import distillkit
from sra_data.errors import CaptureError, ConfigError, ShardError, SRAError
from sra_data.shards.schema import TeacherRow
from sra_data.shards.store import FolderReader, Manifest, ShardSet
from sra_data.stages.cache.recapture import recapture
from sra_data.stages.cache.stage import cache_teacher
from sra_data.stages.imports import run as run_module
from sra_data.stages.imports.options import ImportOptions
from sra_data.stages.imports.stage import import_capture
from sra_data.stages.list import list_shards
from sra_data.stages.repair import repair
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.teacher.spec import TeacherSpec
from sra_data.terminal import Reporter
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_unigram
from tests.unit.captures.writers import EXACT, FITTED, distillkit_row, write_distillkit
from tests.unit.stages.cache.worlds import NUM_ROWS, World, save_teacher, side_row
from tests.unit.stages.imports.imported import (
    SKIPPED,
    capture_distillkit,
    capture_speculators,
    import_it,
    model_of,
    texts_of,
)

CAPTURES = {"distillkit": capture_distillkit, "speculators": capture_speculators}


def rows_of(world: World, section: str) -> list[TeacherRow]:
    with ShardSet.open(world.shards) as shards:
        found: list[TeacherRow] = shards.teacher(section.partition("/")[2]).read(range(NUM_ROWS))
        return found


def reader_of(world: World, section: str) -> FolderReader:
    return ShardSet.open(world.shards).teacher(section.partition("/")[2])


def bytes_of(world: World, section: str) -> dict[str, bytes]:
    folder = world.shards / section
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}


def refused(world: World, format: str, folder: Path, error: type[SRAError] = CaptureError, **options: Any) -> str:
    """The one line of a call that changes nothing."""
    before = Manifest.load(world.shards).content
    with pytest.raises(error) as caught:
        import_it(world, format, folder, **options)
    assert Manifest.load(world.shards).content == before
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ------------------------------------------------------------------------------------------------- golden


def test_a_distillkit_captures_top_k_is_that_of_cache_teacher(world: World, tmp_path: Path) -> None:
    cached = cache_teacher(world.options(hidden_dtype="none", attention=False, temperatures=(1.0,)), Reporter())
    done = import_it(world, "distillkit", capture_distillkit(world, tmp_path / "captured"))
    assert done.section != cached.section
    assert (done.num_captured, done.num_examples, done.num_failed) == (NUM_ROWS - 1, NUM_ROWS - 1, 0)
    for ours, live in zip(rows_of(world, done.section), rows_of(world, cached.section), strict=True):
        assert ours.top_k_ids is not None
        assert live.top_k_ids is not None
        assert ours.top_k_values is not None
        assert ours.log_tails is not None
        assert not ours.hidden
        assert not ours.attention
        assert ours.next_log_prob is None
        np.testing.assert_array_equal(ours.top_k_ids, live.top_k_ids)
        np.testing.assert_allclose(ours.top_k_values, live.top_k_values, atol=2e-3)  # float16
        np.testing.assert_allclose(np.exp(ours.log_tails), np.exp(live.log_tails), atol=1e-6)


def test_a_fitted_captures_top_k_is_that_of_cache_teacher_within_the_fit(world: World, tmp_path: Path) -> None:
    cached = cache_teacher(world.options(top_k=20, temperatures=(1.0,)), Reporter())
    done = import_it(world, "distillkit", capture_distillkit(world, tmp_path / "captured", form=FITTED))
    for ours, live in zip(rows_of(world, done.section), rows_of(world, cached.section), strict=True):
        assert ours.log_tails is not None
        assert live.log_tails is not None
        for one, other, tails, exact in zip(
            dense(ours), dense(live), np.exp(ours.log_tails[0]), np.exp(live.log_tails[0]), strict=True
        ):
            np.testing.assert_allclose(one, other, atol=0.02)
            assert tails == pytest.approx(exact, abs=0.05)
            assert one.sum() + tails == pytest.approx(1, abs=2e-3)
    origin = reader_of(world, done.section).facts["imported"]
    assert origin["rescaled"] == done.num_rescaled
    assert origin["largest_sum"] == done.largest_sum


def dense(row: TeacherRow) -> np.ndarray:
    """[P, V] probabilities of a row's top k."""
    assert row.top_k_ids is not None
    assert row.top_k_values is not None
    found = np.zeros((len(row.top_k_ids), 97))
    np.put_along_axis(found, row.top_k_ids.astype(np.int64), np.exp(row.top_k_values.astype(np.float64)), 1)
    return found


def test_a_speculators_captures_states_are_those_of_cache_teacher(world: World, tmp_path: Path) -> None:
    """Inner layers as they were captured, the last behind the final norm; head and next token's are the same."""
    cached = cache_teacher(world.options(layers=(1, "last"), attention=False), Reporter())
    folder = capture_speculators(world, tmp_path / "captured")
    done = import_it(world, "speculators", folder, layers=(1, "last"), top_k=5)
    live_reader, reader = reader_of(world, cached.section), reader_of(world, done.section)
    for ours, live in zip(rows_of(world, done.section), rows_of(world, cached.section), strict=True):
        assert sorted(ours.hidden) == [1, 3]
        for layer in (1, 3):
            np.testing.assert_allclose(ours.hidden[layer].float32(), live.hidden[layer].float32(), atol=1e-5)
        assert ours.next_log_prob is not None
        assert live.next_log_prob is not None
        np.testing.assert_allclose(ours.next_log_prob, live.next_log_prob, atol=1e-5)
        assert ours.top_k_ids is not None
        assert live.top_k_ids is not None
        np.testing.assert_array_equal(ours.top_k_ids, live.top_k_ids)
        assert ours.log_tails is not None
        assert live.log_tails is not None
        np.testing.assert_allclose(ours.log_tails, live.log_tails, atol=1e-4)
    for name in ("head.safetensors", "embeddings.safetensors"):
        assert (live_reader.folder / name).read_bytes() == (reader.folder / name).read_bytes()


def test_halves_are_kept_as_they_were_captured(world: World, tmp_path: Path) -> None:
    folder = capture_speculators(world, tmp_path / "captured", dtype=torch.bfloat16)
    done = import_it(world, "speculators", folder, layers=(1, "last"), hidden_dtype="bf16")
    cached = cache_teacher(world.options(layers=(1, "last"), attention=False, hidden_dtype="bf16"), Reporter())
    for ours, live in zip(rows_of(world, done.section), rows_of(world, cached.section), strict=True):
        np.testing.assert_array_equal(ours.hidden[1].array, live.hidden[1].array)
        np.testing.assert_allclose(ours.hidden[3].float32(), live.hidden[3].float32(), atol=0.05, rtol=0.02)


@pytest.mark.parametrize("format", CAPTURES)
def test_what_follows_the_last_position_does_not_matter(world: World, tmp_path: Path, format: str) -> None:
    """Another end of sequence, or a text that goes on: what is kept depends on the ids before it alone."""
    whole = import_it(world, format, CAPTURES[format](world, tmp_path / "whole"))
    rows = rows_of(world, whole.section)
    texts = [[*ids[:-1], (ids[-1] + 1) % 97, 5, 6] for ids in texts_of()]
    shutil.rmtree(world.shards / whole.section)
    manifest = Manifest.load(world.shards)
    del manifest.content["teachers"]
    manifest.write()
    other = import_it(world, format, CAPTURES[format](world, tmp_path / "other", texts))
    for ours, before in zip(rows_of(world, other.section), rows, strict=True):  # sums round by a text's length
        if format == "distillkit":
            np.testing.assert_array_equal(ours.top_k_ids, before.top_k_ids)
            np.testing.assert_allclose(dense(ours), dense(before), atol=1e-3)
        else:
            np.testing.assert_allclose(ours.hidden[3].float32(), before.hidden[3].float32(), atol=1e-5)
            np.testing.assert_allclose(ours.next_log_prob, before.next_log_prob, atol=1e-5)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------- restarts


@pytest.mark.parametrize("format", CAPTURES)
def test_a_rerun_does_nothing_and_a_missing_unit_gives_the_same_bytes(
    world: World, tmp_path: Path, format: str
) -> None:
    folder = CAPTURES[format](world, tmp_path / "captured")
    first = import_it(world, format, folder)
    pages, root = bytes_of(world, first.section), first.root
    assert (first.num_done, first.num_missing) == (3, 0)
    assert import_it(world, format, folder).num_done == 0
    for suffix in ("parquet", "receipt.json"):
        (world.shards / first.section / f"part-00001.{suffix}").unlink()
    again = import_it(world, format, folder)
    assert (again.num_done, again.root) == (1, root)
    assert bytes_of(world, again.section) == pages


@pytest.mark.parametrize("format", CAPTURES)
def test_units_may_be_done_apart_in_any_order(world: World, tmp_path: Path, format: str) -> None:
    folder = CAPTURES[format](world, tmp_path / "captured")
    apart = replace(world, shards=Path(shutil.copytree(world.shards, tmp_path / "apart")))
    whole = import_it(world, format, folder)
    assert import_it(apart, format, folder, units="2:3").root is None
    assert import_it(apart, format, folder, units="0/2").root is None
    done = import_it(apart, format, folder)
    assert done.root == whole.root
    assert bytes_of(apart, done.section) == bytes_of(world, whole.section)


@pytest.mark.parametrize("format", CAPTURES)
def test_a_kill_in_the_middle_leaves_nothing_that_is_believed(
    world: World, tmp_path: Path, format: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = CAPTURES[format](world, tmp_path / "captured")
    apart = replace(world, shards=Path(shutil.copytree(world.shards, tmp_path / "apart")))
    whole = import_it(world, format, folder)
    kind = run_module.TopKWorker if format == "distillkit" else run_module.StatesWorker
    original, calls = kind.said_about, []

    def killed(self: Any, *arguments: Any) -> Any:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(self, *arguments)

    monkeypatch.setattr(kind, "said_about", killed)
    with pytest.raises(KeyboardInterrupt):
        import_it(apart, format, folder)
    monkeypatch.setattr(kind, "said_about", original)
    done = import_it(apart, format, folder)
    assert (done.num_done, done.root) == (2, whole.root)
    assert bytes_of(apart, done.section) == bytes_of(world, whole.section)
    assert not [path for path in apart.shards.rglob("*") if "tmp" in path.name]


@pytest.mark.parametrize("format", CAPTURES)
def test_another_capture_is_not_added_to_a_folder(world: World, tmp_path: Path, format: str) -> None:
    folder = CAPTURES[format](world, tmp_path / "captured")
    import_it(world, format, folder, units="0:1")
    other = CAPTURES[format](world, tmp_path / "other", list(reversed(texts_of())))
    assert "capture" in refused(world, format, other, ShardError)
    moved = folder.rename(tmp_path / "moved")  # the same bytes elsewhere are the same capture
    assert import_it(world, format, moved).root is not None


# ------------------------------------------------------------------------------------------------- what is missing


@pytest.mark.parametrize("format", CAPTURES)
def test_missing_rows_are_refused_with_their_number_and_let_through_when_asked(
    world: World, tmp_path: Path, format: str
) -> None:
    folder = CAPTURES[format](world, tmp_path / "captured", texts_of(range(NUM_ROWS - 2)))
    said = refused(world, format, folder)
    assert "2 of the 12 examples" in said
    assert "none of its 10 rows, the first e11" in said
    assert "--max-missing 2" in said
    assert not (world.shards / "teachers").exists()
    done = import_it(world, format, folder, max_missing=2)
    facts = reader_of(world, done.section).facts
    assert facts["failed_examples"] == ["e11", "e12"]
    assert done.num_failed == 2
    rows = rows_of(world, done.section)
    values = rows[11].top_k_values if format == "distillkit" else rows[11].hidden[3].float32()
    assert values is not None
    assert not np.any(values)


def test_a_row_that_ends_at_the_last_position_says_nothing_there(world: World, tmp_path: Path) -> None:
    """The last token of a captured text has no distribution; a padding token behind it is enough."""
    texts, model = [ids[:-1] for ids in texts_of()], model_of(world)
    bare = write_distillkit(tmp_path / "bare", [distillkit_row(model, ids, EXACT) for ids in texts], EXACT)
    said = refused(world, "distillkit", bare)
    assert "12 of the 12 examples" in said
    assert "align with a --teacher-max-length below the capture's" in said
    assert import_it(world, "distillkit", capture_distillkit(world, tmp_path / "padded", texts)).num_failed == 0


def test_a_shorter_capture_does_not_serve(world: World, tmp_path: Path) -> None:
    folder = capture_speculators(world, tmp_path / "short", [ids[:-3] for ids in texts_of()])
    said = refused(world, "speculators", folder)
    ids = [" ".join(map(str, text[:8])) for text in (texts_of()[-1], texts_of()[0][:-3])]
    assert f"example e0 begins with ids {ids[0]}, its rows with {ids[1]}: capture the data" in said
    assert "not one of the 12 examples" in refused(world, "speculators", folder, max_missing=12)


def test_numbers_that_are_none_are_failed_examples(world: World, tmp_path: Path) -> None:
    folder = capture_speculators(world, tmp_path / "captured")
    first = load_file(folder / "hs_0.safetensors")
    first["hidden_states"][-3, 1, 4] = torch.nan
    save_file(first, folder / "hs_0.safetensors")
    with pytest.raises(CaptureError, match=r"example e12: not in the capture, or its numbers are NaN"):
        import_it(world, "speculators", folder)
    done = import_it(world, "speculators", folder, max_missing=1)
    assert reader_of(world, done.section).facts["failed_examples"] == ["e12"]


# ------------------------------------------------------------------------------------------------- refusals


def test_states_behind_the_final_norm_are_refused(world: World, tmp_path: Path) -> None:
    """They would be normed twice."""
    folder = capture_speculators(world, tmp_path / "captured")
    norm = model_of(world).model.norm
    for path in folder.iterdir():
        tensors = load_file(path)
        with torch.no_grad():
            tensors["hidden_states"][:, 1] = norm(tensors["hidden_states"][:, 1])
        save_file(tensors, path)
    assert "came through the final norm already" in refused(world, "speculators", folder)


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"captured_layers": ()}, ConfigError, "speculators takes 2,1,0,3"),
        ({"captured_layers": (1, 2)}, CaptureError, "without the last, 3"),
        ({"layers": (2,)}, CaptureError, "holds the layers 1, 3"),
        ({"layers": ("first",)}, ConfigError, "neither `last` nor a number"),
        ({"max_missing": -1}, ConfigError, "--max-missing -1"),
        ({"units": "9:12"}, ConfigError, "within the plan's 0:3"),
        ({"hidden_dtype": "int8"}, ConfigError, "choose one of bf16, fp16, fp32"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused(
    world: World, tmp_path: Path, options: Any, error: Any, words: str
) -> None:
    folder = capture_speculators(world, tmp_path / "captured")
    assert words in refused(world, "speculators", folder, error, **options)


def test_options_of_states_are_none_of_distillkits(world: World, tmp_path: Path) -> None:
    folder = capture_distillkit(world, tmp_path / "captured")
    assert "--top-k: of speculators'" in refused(world, "distillkit", folder, ConfigError, top_k=3)
    assert "no format that is known" in refused(world, "eagle", folder, ConfigError)


@pytest.mark.parametrize("format", CAPTURES)
def test_a_teacher_of_another_tokenizer_is_refused(world: World, tmp_path: Path, format: str) -> None:
    other = tmp_path / "other"
    tiny_model("llama").save_pretrained(other)
    train_unigram().save_pretrained(other)
    folder = CAPTURES[format](world, tmp_path / "captured")
    options = ImportOptions(str(world.shards), TeacherSpec(name=str(other), device="cpu"), side="teacher")
    if format == "speculators":
        options = replace(options, captured_layers=(1, 3))
    with pytest.raises(ShardError, match="has tokenizer"):
        import_capture(format, str(folder), options, Reporter())


def test_a_teacher_whose_positions_depend_on_the_texts_length_is_refused(world: World, tmp_path: Path) -> None:
    folder = capture_distillkit(world, tmp_path / "captured")
    factors = [1.0] * 4
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": factors}
    other = save_teacher(
        tmp_path / "long", rope_parameters=rope | {"original_max_position_embeddings": 8, "factor": 16.0}
    )
    options = ImportOptions(str(world.shards), TeacherSpec(name=str(other), device="cpu"))
    with pytest.raises(CaptureError, match="texts of more than 8 tokens are read by other frequencies"):
        import_capture("distillkit", str(folder), options, Reporter())


def test_a_full_disk_is_one_line(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = capture_distillkit(world, tmp_path / "captured")

    class Full(io.BytesIO):
        def write(self, data: Any) -> int:
            raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(distillkit.tempfile, "TemporaryFile", lambda **options: Full())
    with pytest.raises(CaptureError, match=r"after 0 bytes nothing more .* No space left on device") as error:
        import_it(world, "distillkit", folder)
    assert "--units" in str(error.value)


def test_states_of_another_width_are_refused(world: World, tmp_path: Path) -> None:
    wide = save_teacher(tmp_path / "wide", hidden_size=64, num_attention_heads=4)
    folder = capture_speculators(replace(world, teacher=wide), tmp_path / "captured")
    assert "hidden states of 64 channels" in refused(world, "speculators", folder)


def test_ids_beyond_the_teachers_vocabulary_are_named_with_their_row(world: World, tmp_path: Path) -> None:
    large = save_teacher(tmp_path / "large", vocab_size=128)
    form = {"d": 128, "k": 40, "exact_k": 40, "exact_dtype": "float32", "polynomial_terms": None, "residual_bins": []}
    folder = capture_distillkit(replace(world, teacher=large), tmp_path / "captured", form=form)
    with pytest.raises(CaptureError, match=r"data_\d\.parquet, row \d: id \d+ at position \d+, the teacher's"):
        import_it(world, "distillkit", folder)


# ------------------------------------------------------------------------------------------------- other commands


@pytest.mark.parametrize("format", CAPTURES)
def test_other_commands_know_an_imported_section(world: World, tmp_path: Path, format: str) -> None:
    done = import_it(world, format, CAPTURES[format](world, tmp_path / "captured"))
    summary = verify(
        VerifyOptions(world.shards, deep=True, teacher=done.section.partition("/")[2]), Reporter(), recapture
    )
    assert summary.problems == ()
    assert summary.num_recaptured > 0
    (entry,) = list_shards(world.shards).of("teachers")
    assert f"imported from 12 rows of {format}" in entry.words
    assert entry.as_dict()["imported"] == format
    assert str(tmp_path) not in json.dumps(Manifest.load(world.shards).section(done.section)["imported"])  # type: ignore[index]


def test_a_live_teacher_that_says_otherwise_is_found_by_verify(world: World, tmp_path: Path) -> None:
    """A capture of other weights under this teacher's name: rows match by their ids, and the numbers are not its."""
    other = save_teacher(tmp_path / "other", seed=9)
    folder = capture_speculators(replace(world, teacher=other), tmp_path / "captured")
    done = import_it(world, "speculators", folder)
    options = VerifyOptions(world.shards, deep=True, teacher=done.section.partition("/")[2])
    assert verify(options, Reporter(), recapture).problems


@pytest.mark.parametrize(("seed", "is_well"), [(0, True), (9, False)])
def test_verify_compares_what_was_stored_as_it_was(world: World, tmp_path: Path, seed: int, is_well: bool) -> None:
    """A coarse curve is the capture's choice and no damage; another model's first values are another model's."""
    coarse = {**FITTED, "exact_k": 4, "polynomial_terms": [0], "residual_bins": []}
    captured = world if is_well else replace(world, teacher=save_teacher(tmp_path / "other", seed=seed))
    done = import_it(world, "distillkit", capture_distillkit(captured, tmp_path / "captured", form=coarse))
    options = VerifyOptions(world.shards, deep=True, teacher=done.section.partition("/")[2])
    assert (not verify(options, Reporter(), recapture).problems) is is_well


def test_a_broken_part_is_repaired_by_importing_again(world: World, tmp_path: Path) -> None:
    folder = capture_distillkit(world, tmp_path / "captured")
    done = import_it(world, "distillkit", folder)
    part = world.shards / done.section / "part-00001.parquet"
    part.write_bytes(part.read_bytes()[:-9])
    said = repair(str(world.shards), Reporter())
    assert any("sra-data import distillkit captured" in command for command in said.commands)
    assert import_it(world, "distillkit", folder).root == done.root


def test_side_rows_without_positions_are_not_looked_for(world: World, tmp_path: Path) -> None:
    assert side_row(SKIPPED).status != "ok"
    done = import_it(world, "distillkit", capture_distillkit(world, tmp_path / "captured"))
    assert reader_of(world, done.section).facts["failed_examples"] == []
