"""A teacher cut over two processes says what it says in one; the first alone writes, and ends the others."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

import sra_data
from sra_data.errors import ConfigError, ModelError
from sra_data.shards.store import ShardSet
from sra_data.stages.cache.options import CacheOptions, check_options
from sra_data.teacher.loading import load
from sra_data.teacher.spec import TeacherSpec
from sra_data.teacher.tensor_parallel import joined
from tests.integration.command_lines import write_examples, write_pair
from tests.ranks import start_ranks

COMMAND = [sys.executable, "-c", "from sra_data.cli import main; main()"]
KEPT = ["--layers", "1,last", "--hidden-dtype", "fp32", "--top-k", "5", "--dtype", "fp32"]


def knows_plans() -> bool:
    """Whether the installed transformers cuts models by a plan that a caller may change."""
    from transformers.distributed import configuration_utils

    kind = getattr(configuration_utils, "DistributedConfig", None)
    return "tp_plan" in getattr(kind, "__dataclass_fields__", {})


@pytest.fixture(scope="module")
def aligned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("aligned")
    teacher, student = write_pair(folder)
    data = write_examples(folder / "my.jsonl", 6)
    return Path(sra_data.align(teacher, student, data=data, out=folder / "shards").shards)


def together(num_processes: int, *arguments: object) -> list[tuple[int, str, str]]:
    """Run a command in several processes; each one's exit code, output and error."""
    return start_ranks([*COMMAND, *map(str, arguments)], num_processes)


@pytest.mark.slow
@pytest.mark.skipif(not knows_plans(), reason="this transformers cuts models in another way")
def test_two_processes_write_what_one_writes(aligned: Path, tmp_path: Path) -> None:
    one, two = (Path(shutil.copytree(aligned, tmp_path / name)) for name in ("one", "two"))
    options = {"layers": (1, "last"), "hidden_dtype": "fp32", "top_k": 5, "dtype": "fp32"}
    expected = sra_data.cache_teacher(one, device="cpu", **options)  # type: ignore[arg-type]
    first, second = together(2, "cache-teacher", two, *KEPT, "--tensor-parallel", "--json")
    assert first[0] == second[0] == 0, first[2] + second[2]
    assert json.loads(first[1])["section"] == expected.section
    assert second[1] == second[2] == ""
    with ShardSet.open(one) as alone, ShardSet.open(two) as shared:
        name = expected.section.partition("/")[2]
        pages = [shards.teacher(name) for shards in (alone, shared)]
        numbers = range(len(pages[0].index))
        for row, other in zip(*(one.read(numbers) for one in pages), strict=True):
            for layer in (1, 3):
                np.testing.assert_allclose(other.hidden[layer].array, row.hidden[layer].array, atol=2e-5)
                np.testing.assert_allclose(other.attention[layer], row.attention[layer], atol=1e-5)
            np.testing.assert_allclose(other.next_log_prob, row.next_log_prob, atol=2e-5)
        assert (pages[1].folder / "head.safetensors").read_bytes() == (
            pages[0].folder / "head.safetensors"
        ).read_bytes()


@pytest.mark.slow
@pytest.mark.skipif(not knows_plans(), reason="this transformers cuts models in another way")
def test_what_the_first_refuses_ends_the_others_too(aligned: Path, tmp_path: Path) -> None:
    shards = Path(shutil.copytree(aligned, tmp_path / "shards"))
    first, second = together(2, "cache-teacher", shards, "--layers", 9, "--tensor-parallel")
    assert first[0] == second[0] == 1
    assert "--layers 9: the teacher has layers 1 to 3" in first[2]
    assert second[2] == "error: --tensor-parallel: the first process was refused; its error says why\n"
    assert not (shards / "teachers").exists()


def test_without_torchrun_it_is_refused_with_how_to_start_it(aligned: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigError, match=r"--tensor-parallel: needs two processes .*`torchrun .*--device-map auto"):
        joined().__enter__()
    with pytest.raises(ConfigError, match="--tensor-parallel: of `sra-data cache-teacher` under torchrun alone"):
        load(TeacherSpec(str(aligned.parent / "teacher"), tensor_parallel=True))


@pytest.mark.parametrize(
    "other", [{"device": "cpu"}, {"device_map": "auto"}, {"quantization": "4bit"}, {"adapter": "a"}]
)
def test_another_place_beside_it_is_refused(other: dict[str, str]) -> None:
    (name,) = other
    with pytest.raises(ConfigError, match=f"--{name.replace('_', '-')} {other[name]} with --tensor-parallel"):
        check_options(CacheOptions(teacher=TeacherSpec(tensor_parallel=True, **other)))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="--workers 2 with --tensor-parallel"):
        check_options(CacheOptions(teacher=TeacherSpec(tensor_parallel=True), num_workers=2))


@pytest.mark.skipif(not knows_plans(), reason="this transformers cuts models in another way")
def test_a_family_without_a_plan_is_refused(tmp_path: Path) -> None:
    from sra_data.teacher.tensor_parallel import sharding_options
    from tests.model_zoo import tiny_model

    mamba = tiny_model("mamba")
    with pytest.raises(ModelError, match="teacher t: MambaForCausalLM has no plan for tensor parallelism"):
        sharding_options(mamba.config, who="teacher t", trust_remote_code=False)
    kept_whole = sharding_options(tiny_model("llama").config, who="teacher t", trust_remote_code=False)
    assert kept_whole["distributed_config"].tp_plan["lm_head"] == "replicate"
