"""The scripts of `pipelines/slurm` and `pipelines/ray`: whatever is lost, the folder is that of one process."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from sra_data.cli import app as data_app
from sra_data.shards.manifest import Manifest, Plan
from tests.conftest import REPOSITORY
from tests.integration import slurm
from tests.integration.command_lines import sra_data, write_pair, write_six_units
from tests.integration.scripts import Ended, run_script, run_script_here
from tests.synthetic_shards import make_shards
from tests.training_runs import EPSILON, losses, train, weights

SLURM, RAY = REPOSITORY / "pipelines" / "slurm", REPOSITORY / "pipelines" / "ray"
SCRIPTS = sorted([*SLURM.glob("*.sbatch"), *SLURM.glob("*.sh"), *RAY.glob("*.sh")])
CACHE = "--top-k 3 --device cpu --batch-tokens 4096"
ALIGN_TASKS, CACHE_TASKS, NUM_UNITS = 3, 4, 6


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models, a corpus of six units, and the shards that one process makes of them."""
    folder = tmp_path_factory.mktemp("slurm")
    write_pair(folder)
    write_six_units(folder / "data.jsonl")
    models = ("--teacher", folder / "teacher", "--student", folder / "student", "--data", folder / "data.jsonl")
    answers = (
        sra_data("align", *models, "--out", folder / "one"),
        sra_data("cache-teacher", folder / "one", "--teacher", folder / "teacher", *CACHE.split()),
    )
    assert [answer.exit_code for answer in answers] == [0, 0], answers
    assert len(Plan.load(folder / "one" / "corpus").units) == NUM_UNITS
    return folder


def environment(place: Path, shards: Path, **more: object) -> dict[str, object]:
    named = {"TEACHER": place / "teacher", "STUDENT": place / "student", "DATA": place / "data.jsonl"}
    tasks = {"ALIGN_TASKS": ALIGN_TASKS, "CACHE_TASKS": CACHE_TASKS, "CACHE_OPTIONS": CACHE, "SHARDS": shards}
    return {**named, **tasks, **more}


def run_here(words: list[str], environment: dict[str, object], folder: Path) -> Ended:
    """A script on a cluster that is a folder of stand-ins."""
    folder.mkdir()
    slurm.install(folder)
    return run_script_here(words, environment, folder)


def files(shards: Path, *, pages: bool) -> dict[str, bytes]:
    """Every file that says nothing of the clock: the receipts and the manifest of pages hold the seconds they took."""
    found = {str(path.relative_to(shards)): path for path in sorted(shards.rglob("*")) if path.is_file()}
    by_clock = ("manifest.json",) if pages else ()
    return {
        name: path.read_bytes()
        for name, path in found.items()
        if name not in by_clock and (not name.startswith("teachers/") or name.endswith((".parquet", ".safetensors")))
    }


def same(made: Path, one: Path) -> None:
    """Whether two folders hold the same corpus, sides, alignments and pages, all sealed."""
    assert files(made, pages=True) == files(one, pages=True)
    ours, theirs = Manifest.load(made), Manifest.load(one)
    assert ours.sections == theirs.sections
    for section in ours.sections:
        assert ours.sealed(section)["root"] == theirs.sealed(section)["root"]
    assert not list(made.rglob("*.tmp"))


def test_arrays_that_lose_tasks_leave_the_folder_of_one_process(place: Path, tmp_path: Path) -> None:
    shards, cluster = tmp_path / "shards", tmp_path / "cluster"
    lost = {"LOST_TASKS": "align:1 cache-teacher:0 cache-teacher:3"}
    said = run_here(["bash", str(SLURM / "submit.sh")], environment(place, shards, **lost), cluster)
    assert said.exit_code == 0, said.error[-3000:]
    same(shards, place / "one")
    jobs = re.fullmatch(r"align (\d+), then (\d+); cache-teacher (\d+), then (\d+)\n", said.output)
    assert jobs is not None
    align, aligned, cache, cached = jobs.groups()
    submitted = (cluster / "submitted").read_text().splitlines()
    assert [re.findall(r"after\w+:\d+", line) for line in submitted] == [
        [],
        [f"afterany:{align}"],
        [f"afterok:{aligned}"],
        [f"afterany:{cache}"],
    ]
    logs = {path.name: path.read_text() for path in cluster.glob("*.log")}
    assert f"align-{align}_1.log" not in logs
    assert "units 0:2 of 0:6" in logs[f"align-{align}_0.log"]
    assert "units 1:3 of 0:6" in logs[f"cache-teacher-{cache}_1.log"]
    assert cached in {name.removesuffix(".log").rpartition("-")[2] for name in logs if name.startswith("finish")}


def test_more_tasks_than_units_and_lost_ones_begun_anew_leave_it_too(place: Path, tmp_path: Path) -> None:
    shards, script = tmp_path / "shards", str(SLURM / "align.sbatch")
    array = ["sbatch", "--parsable", "--array=0-7", script]
    said = run_here(array, environment(place, shards, LOST_TASKS="align:3 align:7"), tmp_path / "first")
    assert said.exit_code == 0, said.error[-3000:]
    logs = [path.read_text() for path in (tmp_path / "first").glob("align-*.log")]
    assert sum("none of the units of 0:6" in log for log in logs) == 2  # six units, eight tasks, two lost that had some
    again = ["sbatch", "--parsable", "--array=3,7", script]
    refused = run_here(again, environment(place, shards), tmp_path / "refused")
    assert refused.exit_code != 0
    assert "set TASKS" in refused.error
    said = run_here(again, environment(place, shards, TASKS=8), tmp_path / "second")
    assert said.exit_code == 0, said.error[-3000:]
    expected = {name: data for name, data in files(place / "one", pages=True).items() if "teachers" not in name}
    assert files(shards, pages=True) == expected


def test_what_is_not_set_is_refused_in_one_line(tmp_path: Path) -> None:
    bare = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_ARRAY_TASK_COUNT": "4", "SLURM_ARRAY_TASK_MAX": "3"}
    for script, given, missing in (
        ("align.sbatch", {**bare, "TEACHER": "a", "STUDENT": "b"}, "DATA is not set"),
        ("align.sbatch", {"TEACHER": "a", "STUDENT": "b", "DATA": "c"}, "no task of an array"),
        ("cache-teacher.sbatch", {}, "no task of an array"),
        ("finish.sbatch", {"STEP": "train"}, "STEP=train: neither align nor cache-teacher"),
    ):
        said = run_script(["bash", str(SLURM / script)], given)
        assert (said.exit_code, said.error.count("\n")) == (2, 1), said.error
        assert missing in said.error
    assert subprocess.run(
        ["bash", SLURM / "submit.sh"], env={"PATH": os.environ["PATH"]}, capture_output=True
    ).returncode


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_one_of_bash_that_stops_at_the_first_error(script: Path) -> None:
    subprocess.run(["bash", "-n", script], check=True)
    text = script.read_text(encoding="utf-8")
    assert text.startswith("#!/usr/bin/env bash\n")
    assert "\nset -euo pipefail\n" in text
    directives = [line for line in text.splitlines() if line.startswith("#SBATCH")]
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", line) for line in directives)
    assert bool(directives) == (script.suffix == ".sbatch")
    first_word = next(line for line in text.splitlines() if line and not line.startswith("#"))
    assert all(text.index(line) < text.index(first_word) for line in directives)  # later ones are not read


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_commands_of_a_script_have_the_options_it_gives_them(script: Path) -> None:
    text = re.sub(r"\\\n\s*", " ", script.read_text(encoding="utf-8"))
    group: Any = typer.main.get_command(data_app)
    for line in re.findall(r"^\s*(?:srun .*?)?\bsra-data ([a-z-]+ .*)$", text, re.MULTILINE):
        name, *words = shlex.split(line, comments=True)
        known = {flag for one in group.commands[name].params for flag in (*one.opts, *one.secondary_opts)}
        given = {word for word in words if word.startswith("--")}
        if "--engine" in given and "--engine" not in known:
            pytest.skip("this version has no --engine")
        assert given <= known


def test_the_cluster_of_ray_is_one_that_ray_up_reads() -> None:
    cluster = yaml.safe_load((RAY / "cluster.yaml").read_text(encoding="utf-8"))
    assert cluster["provider"]["type"] == "local"
    assert cluster["max_workers"] == cluster["min_workers"] == len(cluster["provider"]["worker_ips"])
    started = [*cluster["head_start_ray_commands"], *cluster["worker_start_ray_commands"]]
    assert sum("ray start" in line for line in started) == 2
    pytest.importorskip("ray", reason="Ray's own checks need the extra [ray]")
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(cluster))


@pytest.mark.slow
def test_two_torchruns_that_meet_train_what_one_process_trains(tmp_path: Path) -> None:
    """`train.sbatch` on two nodes that are this machine: agents that find each other by c10d, DDP and then FSDP2."""
    made = make_shards(tmp_path / "made")
    plain = {"training.epochs": 1, "training.batch_size": 4, "training.learning_rate": 3e-3, "tracking.plots": False}
    plain["training.epsilon"] = EPSILON
    train(made, tmp_path / "one", training__epochs=1, training__batch_size=4)
    for strategy in ("ddp", "fsdp2"):
        out, cluster = tmp_path / strategy, tmp_path / f"cluster-{strategy}"
        cluster.mkdir()
        slurm.install(cluster)
        settings = {**plain, "training.strategy": strategy}
        words = " ".join(f"--set {name}={json.dumps(value)}" for name, value in settings.items())
        environment = {
            "PATH": os.pathsep.join([str(cluster), str(Path(sys.executable).parent), os.environ["PATH"]]),
            "PYTHONPATH": REPOSITORY,
            "SHARDS": made.shards,
            "RUN_OPTIONS": f"--output-dir {out} {words}".replace('"', ""),
            "TORCHRUN_OPTIONS": "--local-addr 127.0.0.1",
            "CUDA_VISIBLE_DEVICES": "",
        }
        said = run_script(["sbatch", "--parsable", "--nodes=2", str(SLURM / "train.sbatch")], environment)
        assert said.exit_code == 0, said.error[-3000:]
        assert losses(out) == pytest.approx(losses(tmp_path / "one"), rel=5e-5)
        (log,) = cluster.glob("train-*.log")
        assert "on 2 process(es)" in log.read_text()
        assert weights(out).keys() == weights(tmp_path / "one").keys()
