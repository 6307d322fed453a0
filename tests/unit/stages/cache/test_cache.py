"""Laws of `cache-teacher`: pages equal the live teacher, whoever makes them and however often it is interrupted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from sra_data.errors import ConfigError, ModelError, ShardError
from sra_data.shards.schema import CorpusRow
from sra_data.shards.store import Manifest, ShardSet, Unit, begin, corpus_schema, cut_row_groups, seal, write_part
from sra_data.stages.cache import stage as cache
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.stage import cache_teacher
from sra_data.teacher.loading import load
from sra_data.terminal import Reporter
from tests.model_zoo import tiny_model

ROWS_PER_PART = 5
NUM_ROWS = 13


def corpus_row(number: int) -> CorpusRow:
    """Example `number`: 6 to 12 tokens, the last half its response; number 3 is skipped."""
    generator = np.random.default_rng(number)
    if number == 3:
        empty = np.zeros(0, np.int32)
        return CorpusRow(
            f"e{number}",
            "train",
            "skipped:teacher_overlong",
            "x",
            empty.reshape(0, 2),
            empty,
            empty,
            empty.reshape(0, 2),
        )
    length = int(generator.integers(6, 13))
    ids = generator.integers(3, 97, length).astype(np.int32)
    spans = np.array([[length // 2, length - 1]], np.int32)
    ends = np.arange(1, length + 1, dtype=np.int32)
    return CorpusRow(f"e{number}", "train" if number % 4 else "dev", "ok", "x" * length, spans, ids, ends, spans)


def write_corpus(shards: Path, teacher: Path) -> None:
    """A sealed corpus of three parts, without any tokenizer."""
    rows = [corpus_row(number) for number in range(NUM_ROWS)]
    starts = range(0, NUM_ROWS, ROWS_PER_PART)
    units = [Unit(part, start, min(start + ROWS_PER_PART, NUM_ROWS)) for part, start in enumerate(starts)]
    begin(shards, "corpus", {"corpus": "test"}, lambda: units)
    for unit in units:
        part = rows[unit.start : unit.stop]
        groups = cut_row_groups([row.num_positions for row in part], max_positions=9)
        write_part(shards / "corpus", corpus_schema(), unit, part, groups)
    seal(shards, "corpus", {"teacher": {"name": str(teacher), "revision": None}})


@pytest.fixture(scope="module")
def teacher_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "teacher"
    tiny_model("llama").save_pretrained(folder)
    return folder


@pytest.fixture
def options(tmp_path: Path, teacher_folder: Path) -> CacheOptions:
    write_corpus(tmp_path / "shards", teacher_folder)
    return CacheOptions(shards=str(tmp_path / "shards"), top_k=5, hidden_dtype="fp32", batch_tokens=30, device="cpu")


def pages(options: CacheOptions) -> dict[str, bytes]:
    """The bytes of all parts and of the files beside them."""
    folder = Path(options.shards) / "teacher"
    return {path.name: path.read_bytes() for path in [*folder.glob("*.parquet"), *folder.glob("*.safetensors")]}


def test_pages_say_what_the_live_teacher_says(options: CacheOptions, teacher_folder: Path) -> None:
    summary = cache_teacher(options, Reporter())
    model = load(str(teacher_folder)).model
    assert (summary.num_units, summary.num_done, summary.num_missing) == (3, 3, 0)
    assert summary.num_examples == NUM_ROWS - 1
    assert summary.root is not None
    with ShardSet.open(options.shards) as shards:
        for number, row in enumerate(shards.teacher.read(range(NUM_ROWS))):
            source = corpus_row(number)
            assert row.id == source.id
            assert len(row.positions) == source.num_positions
            if number == 3:
                assert row.hidden[3].shape == (0, 32)
                continue
            with torch.no_grad():
                output = model(torch.from_numpy(source.teacher_ids)[None].long(), output_hidden_states=True)
            positions = torch.from_numpy(row.positions).long()
            np.testing.assert_allclose(
                row.hidden[3].float32(), output.hidden_states[-1][0, positions], atol=1e-5, rtol=1e-5
            )
            log_probs = output.logits[0].log_softmax(dim=-1)
            following = torch.from_numpy(source.teacher_ids).long()[positions + 1]
            np.testing.assert_allclose(row.next_log_prob, log_probs[positions, following], atol=1e-5)
            top = np.exp(row.top_k_values.astype(np.float32)).sum(axis=-1)
            np.testing.assert_allclose(top + np.exp(row.log_tails[0]), 1.0, atol=2e-3)
            assert row.log_tails.shape == (2, source.num_positions)
            assert 0 < row.attention[3].sum() <= 1 + 1e-6


def test_a_rerun_does_nothing_and_a_missing_unit_gives_the_same_bytes(options: CacheOptions) -> None:
    first = cache_teacher(options, Reporter())
    expected = pages(options)
    assert cache_teacher(options, Reporter()).num_done == 0
    (Path(options.shards) / "teacher" / "part-00001.receipt.json").unlink()
    again = cache_teacher(options, Reporter())
    assert again.num_done == 1
    assert again.root == first.root
    assert pages(options) == expected


def test_units_may_be_done_apart_and_the_last_one_seals(
    options: CacheOptions, tmp_path: Path, teacher_folder: Path
) -> None:
    half = cache_teacher(replace(options, units="1:3"), Reporter())
    assert (half.num_done, half.num_missing, half.root) == (2, 1, None)
    with pytest.raises(ShardError, match="unfinished; run `sra-data cache-teacher"):
        ShardSet.open(options.shards)
    whole = cache_teacher(replace(options, units="0:1"), Reporter())
    assert whole.num_missing == 0
    write_corpus(tmp_path / "other", teacher_folder)
    assert cache_teacher(replace(options, shards=str(tmp_path / "other")), Reporter()).root == whole.root


@pytest.mark.slow
def test_a_pool_of_processes_writes_the_same_bytes(options: CacheOptions, tmp_path: Path, teacher_folder: Path) -> None:
    cache_teacher(options, Reporter())
    write_corpus(tmp_path / "other", teacher_folder)
    other = replace(options, shards=str(tmp_path / "other"), num_workers=2)
    cache_teacher(other, Reporter())
    assert pages(other) == pages(options)


def test_faithfulness_is_kept_in_the_manifest_beside_its_controls(options: CacheOptions) -> None:
    found = cache_teacher(replace(options, hidden_dtype="bf16"), Reporter()).faithfulness
    assert found == Manifest.load(Path(options.shards)).sealed("teacher")["faithfulness"]
    assert found["control"]["relative_error"] < 1e-5
    assert 1e-4 < found["cache"]["relative_error"] < 4e-3
    assert found["cache"]["kl"] < 1e-4
    assert found["cache"]["cosine_of_centres"] > 0.9999
    assert found["shuffled"]["relative_error"] > 0.5
    assert found["shuffled"]["kl"] > 0.1


def test_int8_pages_are_within_their_limit(options: CacheOptions) -> None:
    summary = cache_teacher(replace(options, hidden_dtype="int8"), Reporter())
    assert 1e-4 < summary.faithfulness["cache"]["relative_error_non_outlier"] < 1e-2
    assert cache_teacher(replace(options, hidden_dtype="int8"), Reporter()).num_done == 0


def test_pages_of_another_example_fail_and_stay_unsealed(
    options: CacheOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = cache.CacheWorker._row

    def misplaced(self: cache.CacheWorker, row: CorpusRow, captured: object) -> object:
        found = original(self, row, captured)
        return replace(found, hidden={layer: tensor[::-1] for layer, tensor in found.hidden.items()})

    monkeypatch.setattr(cache.CacheWorker, "_row", misplaced)
    with pytest.raises(ShardError, match=r"between live teacher and cache is .*cache again"):
        cache_teacher(options, Reporter())
    with pytest.raises(ShardError, match="unfinished"):
        ShardSet.open(options.shards)


def test_head_and_embeddings_are_beside_the_pages(options: CacheOptions, teacher_folder: Path) -> None:
    cache_teacher(options, Reporter())
    model = load(str(teacher_folder)).model
    with ShardSet.open(options.shards) as shards:
        tensors, metadata = shards.head()
        ids, embeddings, facts = shards.embeddings()
    assert np.array_equal(tensors["weight"].float32(), model.lm_head.weight.numpy())
    assert (metadata["scale"], metadata["softcap"]) == ("1.0", "")
    occurring = np.unique(np.concatenate([corpus_row(number).teacher_ids for number in range(NUM_ROWS)]))
    assert np.array_equal(ids, occurring)
    assert np.array_equal(embeddings.float32(), model.get_input_embeddings().weight.numpy()[occurring])
    assert facts["scale"] == "1.0"


def test_sampled_logits_take_the_place_of_the_top_k(options: CacheOptions) -> None:
    cache_teacher(replace(options, logits="sampled", hidden_dtype="none"), Reporter())
    with ShardSet.open(options.shards) as shards:
        (row,) = shards.teacher.read([0])
    assert row.top_k_ids is None
    assert row.hidden == {}
    assert row.sampled_ids.shape == (corpus_row(0).num_positions, 12)
    np.testing.assert_allclose(row.sampled_weights.sum(axis=1), 1.0, rtol=1e-6)


def test_other_options_for_the_same_folder_are_refused_field_by_field(options: CacheOptions) -> None:
    cache_teacher(options, Reporter())
    with pytest.raises(ShardError, match=r"made from other inputs \(top k: had 5, got 4\)"):
        cache_teacher(replace(options, top_k=4), Reporter())


def test_another_teacher_is_refused(options: CacheOptions, tmp_path: Path) -> None:
    cache_teacher(options, Reporter())
    tiny_model("llama", seed=1).save_pretrained(tmp_path / "other")
    with pytest.raises(ShardError, match=r"made from other inputs .*teacher: had"):
        cache_teacher(replace(options, teacher=str(tmp_path / "other")), Reporter())


def test_activations_that_are_no_numbers_are_named_counted_and_refused(options: CacheOptions, tmp_path: Path) -> None:
    poisoned = tiny_model("llama")
    occurring = corpus_row(7).teacher_ids
    others = np.concatenate([corpus_row(number).teacher_ids for number in range(NUM_ROWS) if number != 7])
    own = next(int(token) for token in occurring if token not in others)
    with torch.no_grad():
        poisoned.get_input_embeddings().weight[own] = torch.nan
    poisoned.save_pretrained(tmp_path / "poisoned")
    bad = replace(options, teacher=str(tmp_path / "poisoned"))
    with pytest.raises(ModelError, match=r"example e7: .*NaN or infinite \(1 such examples, --max-failed 0\)"):
        cache_teacher(bad, Reporter())
    summary = cache_teacher(replace(bad, max_failed=1), Reporter())
    assert summary.num_failed == 1
    assert Manifest.load(Path(options.shards)).sealed("teacher")["failed_examples"] == ["e7"]


def test_a_disk_that_cannot_hold_the_pages_is_refused_before_any_work(
    options: CacheOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = cache.shutil.disk_usage(options.shards)
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(ShardError, match=r"need .*, the disk has 1.0 kB free; free space"):
        cache_teacher(options, Reporter())
    assert not list((Path(options.shards) / "teacher").glob("*.parquet"))


def test_a_vocabulary_smaller_than_the_corpus_ids_is_refused(options: CacheOptions, tmp_path: Path) -> None:
    tiny_model("llama", vocab_size=50).save_pretrained(tmp_path / "small")
    with pytest.raises(ModelError, match=r"vocabulary has 50 ids, example e\d+ holds id \d+"):
        cache_teacher(replace(options, teacher=str(tmp_path / "small")), Reporter())


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"layers": (4,)}, ModelError, "--layers 4: the teacher has layers 1 to 3"),
        ({"layers": ("first",)}, ConfigError, "--layers first: neither `last` nor a number"),
        ({"layers": ()}, ConfigError, "--layers: none given"),
        ({"top_k": 98}, ModelError, "--top-k 98: the teacher's vocabulary has 97 ids"),
        ({"top_k": -1}, ConfigError, "--top-k -1: must be at least 0"),
        ({"hidden_dtype": "int4"}, ConfigError, "--hidden-dtype int4: unknown; choose one of bf16"),
        ({"logits": "all"}, ConfigError, "--logits all: unknown"),
        ({"temperatures": (0.0,)}, ConfigError, "--temperatures"),
        ({"batch_tokens": 0}, ConfigError, "--batch-tokens 0"),
        ({"units": "2:9"}, ConfigError, "--units 2:9: give a:b with a < b, within the plan's 0:3"),
        ({"num_workers": 0}, ConfigError, "--workers 0: must be at least 1"),
    ],
)
def test_options_that_cannot_be_carried_out_are_refused(
    options: CacheOptions, changes: dict, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        cache_teacher(replace(options, **changes), Reporter())


def test_a_folder_without_a_corpus_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="run `sra-data align` first"):
        cache_teacher(CacheOptions(shards=str(tmp_path)), Reporter())


def test_the_plan_keeps_what_was_found_by_trying(options: CacheOptions) -> None:
    found = replace(options, batch_tokens=None, units="0:1")
    cache_teacher(found, Reporter())
    plan = json.loads((Path(options.shards) / "teacher" / "plan.json").read_text())
    assert plan["fingerprint"]["batch_tokens"] == 4096
    assert cache_teacher(replace(found, units=None), Reporter()).num_missing == 0
