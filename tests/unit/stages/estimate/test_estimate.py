"""Laws of `estimate`: it says what cache-teacher then writes, and what it would refuse; nothing is written."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest

from sra_data.errors import ConfigError, ModelError, ShardError
from sra_data.shards.store import Manifest, ShardSet, Unit, record
from sra_data.stages.cache import size as cache_size
from sra_data.stages.cache.examples import ExampleReader
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.stage import cache_teacher
from sra_data.stages.estimate import stage
from sra_data.stages.estimate.stage import EstimateOptions, EstimateSummary, estimate
from sra_data.stages.estimate.summary import Sample
from sra_data.stages.estimate.timing import padded_tokens
from sra_data.teacher.spec import TeacherSpec
from sra_data.terminal import Reporter, bytes_in_words
from tests.integration.command_lines import sra_data, write_examples, write_pair
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_byte_level
from tests.unit.stages.cache.worlds import changed

SAMPLE = Sample(
    num_examples=4,
    num_tokens=100,
    num_positions=50,
    num_failed=0,
    device="cpu",
    tokens_per_second=10.0,
    write_seconds=1.0,
    bytes_per_position=100.0,
    compression=1.0,
    read_bytes_per_second=1e6,
    padded_tokens=100,
    begin_seconds=5.0,
)


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 40 examples without the teacher's pages, beside the folder of its model."""
    folder = tmp_path_factory.mktemp("estimate")
    teacher, student = write_pair(folder)
    data = write_examples(folder / "train.jsonl", 40)
    arguments = ("--teacher", teacher, "--student", student, "--data", data, "--dev-share", 0.1)
    answer = sra_data("align", *arguments, "--out", folder / "shards")
    assert answer.exit_code == 0, answer.error
    return folder / "shards"


@pytest.fixture
def shards(aligned: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(aligned, tmp_path / "shards"))


def options_of(shards: Path, **changes: object) -> CacheOptions:
    """The command's defaults on the CPU, with what is changed."""
    return changed(CacheOptions(str(shards), TeacherSpec(device="cpu")), **changes)


def teacher_of(shards: Path) -> Path:
    """The teacher the shards were aligned for."""
    return Path(Manifest.load(shards).pairs[0]["teacher"]["name"])


def estimated(options: CacheOptions, **changes: object) -> EstimateSummary:
    return estimate(replace(EstimateOptions(options, is_timed=False), **changes), Reporter())


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_dtype": "fp32", "top_k": 0},
        {"hidden_dtype": "bf16", "top_k": 0, "layers": (1, 2, "last")},
        {"hidden_dtype": "int8", "top_k": 0, "attention": False},
        {"hidden_dtype": "fp32", "top_k": 0, "granularity": "span"},
    ],
)
def test_bytes_that_are_not_compressed_are_those_cache_teacher_writes(shards: Path, changes: dict) -> None:
    options = options_of(shards, **changes)
    said = estimated(options)
    written = cache_teacher(options, Reporter())
    # What is left of a difference is next_log_prob, which compresses a little, and Parquet's own pages.
    assert said.num_bytes == pytest.approx(written.num_bytes, rel=0.04)
    assert said.num_positions == written.num_positions
    assert (said.num_examples, said.num_tokens) == (written.num_examples, written.num_tokens)


@pytest.mark.parametrize("changes", [{}, {"top_k": 0}, {"hidden_dtype": "int8"}, {"granularity": "span"}])
def test_a_timed_sample_says_the_compressed_bytes_too(shards: Path, changes: dict) -> None:
    options = options_of(shards, **changes)
    said = estimated(options, is_timed=True, seconds=60.0)  # room for every example, whatever else the machine does
    written = cache_teacher(options, Reporter())
    assert said.expected_bytes == pytest.approx(written.num_bytes, rel=0.03)
    assert said.sample is not None
    assert said.sample.num_examples == 40
    assert said.sample.bytes_per_position == pytest.approx(written.bytes_per_position, rel=0.04)
    assert written.num_bytes <= said.num_bytes  # the arithmetic is an upper bound
    assert said.sample.num_failed == 0


def test_the_estimate_is_what_a_small_disk_is_refused_for(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(shards)
    usage = shutil.disk_usage(shards)
    said = estimated(options)
    assert said.fits
    monkeypatch.setattr(cache_size.shutil, "disk_usage", lambda path: usage._replace(free=said.num_bytes))
    refused = estimated(options)
    assert not refused.fits
    assert "NOT enough" in "\n".join(refused.lines())
    with pytest.raises(ShardError, match=f"pages need {bytes_in_words(said.num_bytes)}, the disk has"):
        cache_teacher(options, Reporter())
    room = int(said.num_bytes * cache_size.DISK_ROOM) + 1
    monkeypatch.setattr(cache_size.shutil, "disk_usage", lambda path: usage._replace(free=room))
    assert estimated(options).fits
    assert cache_teacher(options, Reporter()).num_missing == 0


def test_alternatives_change_one_thing_each_and_leave_out_the_chosen(shards: Path) -> None:
    said = estimated(options_of(shards))
    sizes = {alternative.flags: alternative.bytes_per_position for alternative in said.alternatives}
    assert sizes.pop("") == said.bytes_per_position
    assert list(sizes) == [
        "--hidden-dtype int8",
        "--hidden-dtype fp32",
        "--hidden-dtype none",
        "--granularity span",
        "--top-k 0",
        "--top-k 256",
        "--layers 1,2,3",
    ]
    spans = next(one for one in said.alternatives if one.flags == "--granularity span")
    assert spans.num_bytes < said.num_bytes  # fewer spans than positions
    width = said.hidden_size
    assert said.bytes_per_position - sizes["--hidden-dtype none"] == 2 * width
    assert sizes["--hidden-dtype fp32"] - said.bytes_per_position == 2 * width
    assert sizes["--hidden-dtype int8"] - sizes["--hidden-dtype none"] == width + 4
    assert sizes["--layers 1,2,3"] - said.bytes_per_position == 2 * (2 * width + 4)
    ids = 64 * 9 / 8  # nine bits for a vocabulary of 403
    assert said.bytes_per_position - sizes["--top-k 0"] == ids + 2 * 64 + 2 * 4


def test_the_configuration_is_enough_where_nothing_is_timed(shards: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    shutil.copy(teacher_of(shards) / "config.json", bare)
    whole = estimated(options_of(shards))
    said = estimated(options_of(shards, name=str(bare), side=whole.side))
    assert (said.num_bytes, said.side) == (whole.num_bytes, whole.side)
    assert (said.sample, said.cache_hours, said.online_hours, said.expected_bytes) == (None, None, None, None)
    with pytest.raises(ModelError, match="cannot be loaded"):
        estimated(options_of(shards, name=str(bare), side=whole.side), is_timed=True)
    with pytest.raises(ShardError, match="no tokenizer beside it"):
        estimated(options_of(shards, name=str(bare)))


@pytest.mark.parametrize("is_timed", [False, True])
def test_a_teacher_is_chosen_as_cache_teacher_chooses_it(shards: Path, tmp_path: Path, is_timed: bool) -> None:
    """Another model with the aligned teacher's tokenizer reads the same side; a stranger is refused."""
    config = json.loads((teacher_of(shards) / "config.json").read_text())
    larger = Path(shutil.copytree(teacher_of(shards), tmp_path / "larger"))
    sizes = {"vocab_size": config["vocab_size"], "max_position_embeddings": config["max_position_embeddings"]}
    tiny_model("llama", hidden_size=64, **sizes).save_pretrained(larger)
    found = estimated(options_of(shards, name=str(larger)), is_timed=is_timed, seconds=0.5)
    assert (found.teacher, found.hidden_size) == (str(larger), 64)
    assert found.side == estimated(options_of(shards)).side
    train_byte_level().save_pretrained(larger)
    with pytest.raises(
        ShardError, match=r"no side is of the tokenizer \w+ of teacher .*larger .*sra-data align --teacher"
    ):
        estimated(options_of(shards, name=str(larger)), is_timed=is_timed)


def test_offline_pays_from_the_second_pass_on(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = options_of(shards)
    assert estimated(options, epochs=1, students=1).cheaper == "equal"
    several = estimated(options, epochs=3, students=2)
    assert (several.online_passes, several.cheaper) == (6, "offline")
    monkeypatch.setattr(stage, "time_sample", lambda *_: SAMPLE)
    timed = estimated(options, epochs=50, students=20, is_timed=True)
    once = estimated(options, epochs=1, students=1, is_timed=True)
    assert timed.online_hours is not None
    assert once.online_hours is not None
    assert timed.online_hours == pytest.approx(1000 * once.online_hours)
    assert timed.cheaper == "offline"
    # One epoch of one student: the teacher runs once either way, and writing comes on top.
    assert once.cheaper == "online"


def test_a_gpu_writes_beside_the_next_unit_and_a_cpu_behind_it(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hours = {}
    for device in ("cpu", "cuda"):
        monkeypatch.setattr(stage, "time_sample", lambda *_, on=device: replace(SAMPLE, device=on))
        said = estimated(options_of(shards), is_timed=True, examples=4_000_000)
        assert said.cache_hours is not None
        hours[device] = 3600 * said.cache_hours - SAMPLE.begin_seconds - 16 * 10.0 / SAMPLE.num_examples
        written = SAMPLE.write_seconds * said.num_positions / SAMPLE.num_positions
        units = said.num_units
    said_alone = hours["cpu"] - written
    assert said_alone > written > 0  # a hundred tokens took ten seconds, fifty positions one
    assert hours["cuda"] == pytest.approx(said_alone + written / units, rel=1e-4)


def test_hours_go_by_the_tokens_of_padded_batches_and_count_what_comes_before_the_first_unit(shards: Path) -> None:
    said = estimated(options_of(shards), is_timed=True, seconds=60.0)
    assert said.sample is not None
    assert said.cache_hours is not None
    forward = said.sample.num_tokens / said.sample.tokens_per_second
    assert said.sample.padded_tokens >= said.sample.num_tokens
    # all forty examples were timed, as the one unit they are; sixteen are asked again for the faithfulness
    expected = said.sample.begin_seconds + forward * (1 + 16 / 40) + said.sample.write_seconds
    assert 3600 * said.cache_hours == pytest.approx(expected)
    assert said.sample.begin_seconds > 0


def test_padding_is_counted_batch_by_batch(shards: Path) -> None:
    examples, lengths = options_of(shards), [5, 3, 3, 1]
    with ShardSet.open(examples.shards) as opened:
        reader = ExampleReader(opened.side(opened.choose_teacher_side()))
        reader.__dict__["num_tokens"] = np.array([*lengths, 0], np.int32)
        # (5, 3) in a batch of ten padded tokens, (3, 1) in one of six; what has nothing to say is in none
        assert padded_tokens(reader, [Unit(0, 0, 5)], 10) == 2 * 5 + 2 * 3
        assert padded_tokens(reader, [Unit(0, 0, 2), Unit(1, 2, 5)], 1000) == 2 * 5 + 2 * 3
        assert padded_tokens(reader, [Unit(0, 0, 5)], 1) == sum(lengths)


def test_so_many_machines_like_this_one_take_so_many_times_less(shards: Path) -> None:
    one, ten = (
        estimated(options_of(shards), is_timed=True, seconds=0.5, gpus=gpus, examples=4_000_000) for gpus in (1, 10)
    )
    assert one.fleet is not None
    assert ten.fleet is not None
    for said in (one, ten):
        assert said.cache_hours is not None
        units = said.cache_hours - said.sample.begin_seconds / 3600  # type: ignore[union-attr]
        assert said.fleet.gpu_hours == pytest.approx(units, rel=0.01)
    assert ten.fleet.hours == pytest.approx(ten.fleet.gpu_hours / 10)


def test_nothing_is_written_into_the_folder(shards: Path) -> None:
    before = {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()}
    estimated(options_of(shards, hidden_dtype="int8"), is_timed=True, seconds=0.5)
    assert {path: path.read_bytes() for path in shards.rglob("*") if path.is_file()} == before


def test_scales_of_other_layers_that_are_there_are_not_taken(shards: Path) -> None:
    cache_teacher(options_of(shards, hidden_dtype="int8"), Reporter())
    other = estimated(options_of(shards, hidden_dtype="int8", layers=(1, "last")), is_timed=True, seconds=0.5)
    assert other.sample is not None


def test_pages_that_are_there_do_not_change_the_estimate_of_others(shards: Path) -> None:
    other = options_of(shards, hidden_dtype="int8", layers=(1,))
    before = estimated(other)
    cache_teacher(options_of(shards), Reporter())
    after = estimated(other, is_timed=True, seconds=0.5)
    assert after.num_bytes == before.num_bytes
    assert after.sample is not None


def test_the_command_prints_words_or_the_same_numbers_as_json(shards: Path) -> None:
    said = estimated(options_of(shards), epochs=3)
    answer = sra_data("estimate", shards, "--device", "cpu", "--no-time", "--epochs", 3, "--json")
    found = json.loads(answer.output)
    assert found | {"disk_free": 0} == json.loads(json.dumps(asdict(replace(said, disk_free=0))))
    words = sra_data("estimate", shards, "--device", "cpu", "--no-time", "--epochs", 3).output
    assert "--hidden-dtype int8" in words
    assert "3 epochs x 1 student" in words
    assert "offline is cheaper" in words


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs 0: must be above 0"),
        ({"students": -1}, "--students -1: must be above 0"),
        ({"cache": changed(CacheOptions(), hidden_dtype="fp8")}, "--hidden-dtype fp8: unknown"),
    ],
)
def test_plans_that_mean_nothing_are_refused(shards: Path, changes: dict, message: str) -> None:
    changes.setdefault("cache", CacheOptions())
    changes["cache"] = replace(changes["cache"], shards=str(shards))
    with pytest.raises(ConfigError, match=message):
        estimate(EstimateOptions(**changes, is_timed=False), Reporter())


def test_a_folder_without_a_sealed_corpus_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ShardError, match="run `sra-data align` first"):
        estimated(CacheOptions(str(tmp_path / "nowhere")))
    record(shards, "corpus", root=None)
    with pytest.raises(ShardError, match="unfinished"):
        estimated(CacheOptions(str(shards)))


def test_ids_beyond_the_vocabulary_are_named(shards: Path, tmp_path: Path) -> None:
    small = Path(shutil.copytree(teacher_of(shards), tmp_path / "small"))
    config = json.loads((small / "config.json").read_text()) | {"vocab_size": 300}
    (small / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match=r"its vocabulary has 300 ids, example .* holds id"):
        estimated(options_of(shards, name=str(small)))
