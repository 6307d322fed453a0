"""Laws of `cache-teacher`: pages equal the live teacher, whoever makes them and however often it is interrupted."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sra_data.errors import ConfigError, ModelError, ShardError
from sra_data.shards.store import Manifest, ShardSet
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.run import CacheRun
from sra_data.stages.cache.stage import cache_teacher
from sra_data.stages.cache.unit import CacheWorker
from sra_data.teacher.loading import load
from sra_data.teacher.spec import TeacherSpec
from sra_data.terminal import Reporter, Task
from tests.model_zoo import tiny_model
from tests.unit.stages.cache.worlds import (
    ALIGNMENT,
    NUM_ROWS,
    TEACHER_SIDE,
    World,
    alignment_row,
    changed,
    forget,
    save_teacher,
    side_row,
    write_alignment,
)


def folder_of(world: World) -> Path:
    """Where the only teacher's pages are."""
    (folder,) = (world.shards / "teachers").iterdir()
    return folder


def pages(world: World) -> dict[str, bytes]:
    """The bytes of all parts and of the files beside them."""
    folder = folder_of(world)
    return {path.name: path.read_bytes() for path in [*folder.glob("*.parquet"), *folder.glob("*.safetensors")]}


def copy_of(world: World, place: Path) -> World:
    """The shards once more, elsewhere."""
    return replace(world, shards=Path(shutil.copytree(world.shards, place)))


def test_pages_say_what_the_live_teacher_says(world: World) -> None:
    summary = cache_teacher(world.options(), Reporter())
    model = load(TeacherSpec(str(world.teacher))).model
    assert (summary.num_units, summary.num_done, summary.num_missing) == (3, 3, 0)
    assert summary.num_examples == NUM_ROWS - 1
    assert summary.root is not None
    assert summary.side == TEACHER_SIDE
    with ShardSet.open(world.shards) as shards:
        name = shards.choose_teacher()
        assert summary.section == f"teachers/{name}"
        for number, row in enumerate(shards.teacher(name).read(range(NUM_ROWS))):
            source = side_row(number)
            assert row.id == source.id
            assert len(row.positions) == source.num_positions
            if number == 3:
                assert row.hidden[3].shape == (0, 32)
                continue
            with torch.no_grad():
                output = model(torch.from_numpy(source.ids)[None].long(), output_hidden_states=True)
            positions = torch.from_numpy(row.positions).long()
            np.testing.assert_allclose(
                row.hidden[3].float32(), output.hidden_states[-1][0, positions], atol=1e-5, rtol=1e-5
            )
            log_probs = output.logits[0].log_softmax(dim=-1)
            following = torch.from_numpy(source.ids).long()[positions + 1]
            np.testing.assert_allclose(row.next_log_prob, log_probs[positions, following], atol=1e-5)
            top = np.exp(row.top_k_values.astype(np.float32)).sum(axis=-1)
            np.testing.assert_allclose(top + np.exp(row.log_tails[0]), 1.0, atol=2e-3)
            assert row.log_tails.shape == (2, source.num_positions)
            assert 0 < row.attention[3].sum() <= 1 + 1e-6


def test_pages_by_span_are_the_centres_of_mass_of_its_alignment(world: World) -> None:
    """Spans of one token: a centre of mass is the token's state, its mass the token's attention."""
    by_token = copy_of(world, world.shards.parent / "tokens")
    summary = cache_teacher(world.options(granularity="span"), Reporter())
    cache_teacher(by_token.options(), Reporter())
    facts = Manifest.load(world.shards).sealed(summary.section)
    assert facts["made_from"].keys() == {f"sides/{TEACHER_SIDE}", f"alignments/{ALIGNMENT}"}
    assert (facts["side"], facts["alignment"], facts["granularity"]) == (
        TEACHER_SIDE,
        f"alignments/{ALIGNMENT}",
        "span",
    )
    with ShardSet.open(world.shards) as spans, ShardSet.open(by_token.shards) as tokens:
        found = spans.teacher(spans.choose_teacher()).read(range(NUM_ROWS))
        expected = tokens.teacher(tokens.choose_teacher()).read(range(NUM_ROWS))
    for number, (span, token) in enumerate(zip(found, expected, strict=True)):
        assert span.next_log_prob is None
        if number != 3:
            where = np.searchsorted(token.positions, alignment_row(number).right_spans[:, 0])
            np.testing.assert_allclose(span.hidden[3].float32(), token.hidden[3].float32()[where], atol=1e-5, rtol=1e-5)
            np.testing.assert_allclose(span.attention[3], token.attention[3][where], atol=1e-6)


def test_a_rerun_does_nothing_and_a_missing_unit_gives_the_same_bytes(world: World) -> None:
    first = cache_teacher(world.options(), Reporter())
    expected = pages(world)
    assert cache_teacher(world.options(), Reporter()).num_done == 0
    (folder_of(world) / "part-00001.receipt.json").unlink()
    again = cache_teacher(world.options(), Reporter())
    assert again.num_done == 1
    assert again.root == first.root
    assert pages(world) == expected


def test_units_may_be_done_apart_and_the_last_one_seals(world: World) -> None:
    other = copy_of(world, world.shards.parent / "other")
    half = cache_teacher(world.options(units="1:3"), Reporter())
    assert (half.num_done, half.num_missing, half.root) == (2, 1, None)
    with (
        ShardSet.open(world.shards) as shards,
        pytest.raises(ShardError, match="unfinished; run `sra-data cache-teach"),
    ):
        shards.teacher(shards.choose_teacher())
    whole = cache_teacher(world.options(units="0:1"), Reporter())
    assert whole.num_missing == 0
    assert cache_teacher(other.options(), Reporter()).root == whole.root


def test_units_are_half_open(world: World) -> None:
    one = cache_teacher(world.options(units="1:2"), Reporter())
    assert (one.num_done, one.num_missing) == (1, 2)
    assert [path.name for path in folder_of(world).glob("*.parquet")] == ["part-00001.parquet"]


def test_a_unit_that_is_made_again_is_sealed_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine a teacher says something a little different: the index has to be that of what is there."""
    first = cache_teacher(world.options(), Reporter())
    (folder_of(world) / "part-00001.receipt.json").unlink()
    original = CacheWorker._row

    def elsewhere(self: CacheWorker, example: object, captured: object) -> object:
        found = original(self, example, captured)
        return replace(found, next_log_prob=found.next_log_prob + np.float32(1e-6))

    monkeypatch.setattr(CacheWorker, "_row", elsewhere)
    again = cache_teacher(world.options(), Reporter())
    assert again.root not in (None, first.root)
    with ShardSet.open(world.shards) as shards:
        assert len(shards.teacher(shards.choose_teacher()).read(range(NUM_ROWS))) == NUM_ROWS


def test_spans_that_changed_meanwhile_are_refused(world: World) -> None:
    cache_teacher(world.options(granularity="span", units="0:1"), Reporter())
    forget(world.shards, f"alignments/{ALIGNMENT}")
    write_alignment(world.shards, without=[11])
    with pytest.raises(ShardError, match=r"made from other inputs \(alignment: had [0-9a-f]+, got [0-9a-f]+\)"):
        cache_teacher(world.options(granularity="span"), Reporter())


def test_an_example_that_the_student_lacks_is_not_read_by_span(world: World) -> None:
    forget(world.shards, f"alignments/{ALIGNMENT}")
    write_alignment(world.shards, without=[2, 11])
    shown: list[tuple[float | None, float]] = []

    class Showing(Reporter):
        @contextmanager
        def task(self, description: str, total: float | None = None, unit: str = "items") -> Iterator[Task]:
            with super().task(description, total, unit) as task:
                yield task
            shown.append((total, task.done))

    summary = cache_teacher(world.options(granularity="span"), Showing())
    read = sum(len(side_row(number).ids) for number in range(NUM_ROWS) if number not in (2, 3, 11))
    assert (summary.num_examples, summary.num_tokens) == (NUM_ROWS - 3, read)
    assert shown == [(read, read)]


@pytest.mark.slow
@pytest.mark.parametrize("granularity", ["token", "span"])
def test_a_pool_of_processes_writes_the_same_bytes(world: World, granularity: str) -> None:
    other = copy_of(world, world.shards.parent / "other")
    cache_teacher(world.options(granularity=granularity), Reporter())
    cache_teacher(other.options(granularity=granularity, num_workers=2), Reporter())
    assert pages(other) == pages(world)


def test_faithfulness_is_kept_in_the_manifest_beside_its_controls(world: World) -> None:
    summary = cache_teacher(world.options(hidden_dtype="bf16"), Reporter())
    found = summary.faithfulness
    assert found == Manifest.load(world.shards).sealed(summary.section)["faithfulness"]
    assert found["control"]["relative_error"] < 1e-5
    assert 1e-4 < found["cache"]["relative_error"] < 4e-3
    assert found["cache"]["kl"] < 1e-4
    assert found["cache"]["cosine_of_centres"] > 0.9999
    assert found["shuffled"]["relative_error"] > 0.5
    assert found["shuffled"]["kl"] > 0.1


def test_int8_pages_are_within_their_limit(world: World) -> None:
    summary = cache_teacher(world.options(hidden_dtype="int8"), Reporter())
    assert 1e-4 < summary.faithfulness["cache"]["relative_error_non_outlier"] < 1e-2
    assert cache_teacher(world.options(hidden_dtype="int8"), Reporter()).num_done == 0


def test_pages_of_another_example_fail_and_stay_unsealed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    original = CacheWorker._row

    def misplaced(self: CacheWorker, example: object, captured: object) -> object:
        found = original(self, example, captured)
        return replace(found, hidden={layer: tensor[::-1] for layer, tensor in found.hidden.items()})

    monkeypatch.setattr(CacheWorker, "_row", misplaced)
    with pytest.raises(ShardError, match=r"between live teacher and cache is .*cache again"):
        cache_teacher(world.options(), Reporter())
    with ShardSet.open(world.shards) as shards, pytest.raises(ShardError, match="unfinished"):
        shards.teacher(shards.choose_teacher())


def test_head_and_embeddings_are_beside_the_pages(world: World) -> None:
    cache_teacher(world.options(), Reporter())
    model = load(TeacherSpec(str(world.teacher))).model
    with ShardSet.open(world.shards) as shards:
        name = shards.choose_teacher()
        tensors, metadata = shards.head(name)
        ids, embeddings, facts = shards.embeddings(name)
    assert np.array_equal(tensors["weight"].float32(), model.lm_head.weight.numpy())
    assert (metadata["scale"], metadata["softcap"]) == ("1.0", "")
    occurring = np.unique(np.concatenate([side_row(number).ids for number in range(NUM_ROWS)]))
    assert np.array_equal(ids, occurring)
    assert np.array_equal(embeddings.float32(), model.get_input_embeddings().weight.numpy()[occurring])
    assert facts["scale"] == "1.0"


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"top_k": 4}, "top k: had 5, got 4"),
        ({"dtype": "bf16"}, "dtype: had fp32, got bf16"),
        ({"layers": (1, "last")}, r"layers: had \[3\], got \[1, 3\]"),
        ({"hidden_dtype": "int8"}, "hidden dtype: had fp32, got int8"),
        (
            {"attention": False, "temperatures": (1.0,)},
            r"attention: had true, got false; temperatures: had \[1.0, 2.0\]",
        ),
        ({"batch_tokens": 31}, "batch tokens: had 30, got 31"),
    ],
)
def test_other_options_for_the_same_teacher_are_refused_field_by_field(
    world: World, changes: dict, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache_teacher(world.options(), Reporter())
    expected = pages(world)
    monkeypatch.setattr(CacheRun, "teacher", None)  # no teacher is loaded to find that out
    with pytest.raises(ShardError, match=rf"teachers/teacher-[0-9a-f]{{8}}: made from other inputs \({said}") as raised:
        cache_teacher(world.options(**changes), Reporter())
    assert "\n" not in str(raised.value)
    assert pages(world) == expected


def poisoned(folder: Path, *numbers: int) -> Path:
    """A teacher that has no finite numbers for some examples: NaN at an id that no other example holds."""
    teacher = save_teacher(folder)
    model = load(TeacherSpec(str(teacher))).model
    for number in numbers:
        others = np.concatenate([side_row(other).ids for other in range(NUM_ROWS) if other != number])
        own = next(int(token) for token in side_row(number).ids if token not in others)
        with torch.no_grad():
            model.get_input_embeddings().weight[own] = torch.nan
    model.save_pretrained(teacher)
    return teacher


def test_failed_examples_of_all_units_together_count(world: World, tmp_path: Path) -> None:
    """Of each unit alone no more than the limit fail."""
    bad = world.options(name=str(poisoned(tmp_path / "poisoned", 7, 11)), max_failed=1)
    with pytest.raises(ModelError, match=r"example e7: .*\(2 such examples, --max-failed 1\)"):
        cache_teacher(bad, Reporter())
    (section,) = (name for name in Manifest.load(world.shards).sections if name.startswith("teachers/"))
    assert (Manifest.load(world.shards).section(section) or {})["root"] is None
    assert cache_teacher(replace(bad, max_failed=2), Reporter()).num_failed == 2


def test_activations_that_are_no_numbers_are_named_counted_and_refused(world: World, tmp_path: Path) -> None:
    bad = world.options(name=str(poisoned(tmp_path / "poisoned", 7)))
    with pytest.raises(ModelError, match=r"example e7: .*NaN or infinite \(1 such examples, --max-failed 0\)"):
        cache_teacher(bad, Reporter())
    summary = cache_teacher(replace(bad, max_failed=1), Reporter())
    assert summary.num_failed == 1
    assert Manifest.load(world.shards).sealed(summary.section)["failed_examples"] == ["e7"]
    with ShardSet.open(world.shards) as shards:
        (row,) = shards.teacher(shards.choose_teacher()).read([7])
    assert len(row.positions) == side_row(7).num_positions
    assert not row.hidden[3].float32().any()
    assert not row.attention[3].any()
    assert np.isnan(row.next_log_prob).all()


def test_a_disk_that_cannot_hold_the_pages_is_refused_before_any_work(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(world.shards)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ShardError, match=r"need .*, the disk has 1.0 kB free; free space"):
        cache_teacher(world.options(), Reporter())
    assert not (world.shards / "teachers").exists()


def test_a_vocabulary_smaller_than_the_sides_ids_is_refused(world: World, tmp_path: Path) -> None:
    small = save_teacher(tmp_path / "small", vocab_size=50)
    with pytest.raises(ModelError, match=r"vocabulary has 50 ids, example e\d+ of sides/teacher-\w+ holds id \d+"):
        cache_teacher(world.options(name=str(small)), Reporter())
    assert not (world.shards / "teachers").exists()


def test_a_refusal_leaves_no_plan_that_the_mended_options_contradict(world: World, tmp_path: Path) -> None:
    tiny_model("mamba").save_pretrained(tmp_path / "mamba")
    shutil.copy(world.teacher / "tokenizer.json", tmp_path / "mamba")
    shutil.copy(world.teacher / "tokenizer_config.json", tmp_path / "mamba")
    with pytest.raises(ModelError, match="pooling=mean or pooling=last"):
        cache_teacher(world.options(name=str(tmp_path / "mamba")), Reporter())
    assert cache_teacher(world.options(name=str(tmp_path / "mamba"), attention=False), Reporter()).root


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": (4,)}, ModelError, "--layers 4: the teacher has layers 1 to 3"),
        ({"layers": ("first",)}, ConfigError, "--layers first: neither `last` nor a number"),
        ({"layers": ()}, ConfigError, "--layers: none given"),
        ({"top_k": 98}, ModelError, "--top-k 98: the teacher's vocabulary has 97 ids"),
        ({"top_k": -1}, ConfigError, "--top-k -1: must be at least 0"),
        ({"hidden_dtype": "int4"}, ConfigError, "--hidden-dtype int4: unknown; choose one of bf16, fp16, fp32, int8"),
        ({"granularity": "word"}, ConfigError, "--granularity word: unknown; choose one of token, span"),
        ({"dtype": "fp8"}, ConfigError, "--dtype fp8: unknown; choose one of bf16, fp16, fp32"),
        ({"temperatures": (0.0,)}, ConfigError, "--temperatures"),
        ({"batch_tokens": 0}, ConfigError, "--batch-tokens 0"),
        ({"units": "2:9"}, ConfigError, "--units 2:9: give a:b with a < b, within the plan's 0:3"),
        ({"num_workers": 0}, ConfigError, "--workers 0: must be at least 1"),
        ({"student": "s"}, ConfigError, "--student s: pages by token serve every student"),
        ({"alignment": "a"}, ConfigError, "--alignment a: pages by token serve every student"),
        ({"granularity": "span", "attention": False}, ConfigError, "a span's centre of mass needs attention"),
        ({"granularity": "span", "hidden_dtype": "none"}, ConfigError, "none leaves no centre of mass to keep"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused(
    world: World, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cache_teacher(world.options(**changes), Reporter())


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="run `sra-data align` first"):
        cache_teacher(CacheOptions(shards=str(tmp_path)), Reporter())


def test_the_plan_keeps_what_was_found_by_trying(world: World) -> None:
    found = changed(world.options(), batch_tokens=None, units="0:1")
    cache_teacher(found, Reporter())
    plan = json.loads((folder_of(world) / "plan.json").read_text())
    assert plan["fingerprint"]["batch_tokens"] == 4096
    assert cache_teacher(replace(found, units=None), Reporter()).num_missing == 0
