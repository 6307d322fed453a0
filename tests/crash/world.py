"""The small world of the trials: a pair of models, a corpus of several units, and what undisturbed commands make of it.

Three commands follow each other: `align`, `cache-teacher`, `run`. A `Command` knows how to begin (the folder that the
one before it has left), what to call, and how to tell whether a folder is what an undisturbed run leaves.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tests.crash.process import carried_out

RESPONSE_BYTES_PER_PART = 900  # so that two dozen examples are several units
# What depends on the clock and the machine, in a teacher's receipts and a run's metrics.
MEASURED = {"seconds", "tokens_per_second", "data_wait", "peak_memory_bytes", "seal", "notes"}

MODULES = (
    "sra_data.stages.align.stage",
    "sra_data.stages.cache.stage",
    "sra_data.stages.list",
    "sra_data.stages.verify",
    "sra_train.compare.warm",
    "sra_train.run",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.llama.modeling_llama",
)


def import_everything() -> None:
    """What the commands would import by themselves, some seconds each time; no thread is started by it."""
    import torch

    torch.set_num_threads(1)
    for name in MODULES:
        importlib.import_module(name)
    from sra_data.stages.align import plan

    plan.RESPONSE_BYTES_PER_PART = RESPONSE_BYTES_PER_PART


@dataclass(frozen=True)
class Command:
    """One of the three.

    Attributes:
        name: "align", "cache-teacher" or "run".
        words: the command line for a folder.
        begin: makes the folder it is called on.
        differences: what is not as an undisturbed run leaves it, a line each.
        whole: the folder that an undisturbed run left.
        seconds: that took; `num_writes`: the times it forced or renamed a file.
        shares_work: whether several processes may work on one folder at once.
    """

    name: str
    words: Callable[[Path], list[object]]
    begin: Callable[[Path], object]
    differences: Callable[[Path, Path], list[str]]
    whole: Path
    shares_work: bool = True
    seconds: float = 0.0
    num_writes: int = 0


@dataclass
class World:
    """All that the trials are made on; everything lies in `root`."""

    root: Path
    commands: list[Command] = field(default_factory=list)

    @property
    def log(self) -> Path:
        """Where a process that is waited for at once writes."""
        return self.root / "log"

    @property
    def shards(self) -> Path:
        """The sealed shards, teacher included."""
        return self.root / "whole" / "cache-teacher"

    @property
    def trained(self) -> Path:
        """The folder of the finished run."""
        return self.root / "whole" / "run"

    def verified(self, shards: Path) -> str:
        """What `verify` finds wrong, empty where nothing is."""
        ended = carried_out(["sra-data", "verify", shards, "--json"], self.log)
        return "" if ended.code == 0 else ended.last_words


def make_world(root: Path, *, num_examples: int = 18) -> World:
    """Models, corpus, and the three undisturbed runs.

    Raises:
        RuntimeError: If one of them fails.
    """
    world = World(root)
    child = os.fork()
    if child == 0:  # training a tokenizer starts threads
        _write_inputs(root, num_examples)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        raise RuntimeError("the models cannot be written")
    (root / "whole").mkdir()
    for command in (_align(world), _cache(world), _run(world)):
        command.begin(command.whole)
        writes = root / f"writes-{command.name}"
        started = time.monotonic()
        ended = carried_out(command.words(command.whole), world.log, partial(_note_writes, writes))
        if ended.code != 0:
            raise RuntimeError(f"{command.name} without any disturbance {ended.last_words}")
        took = time.monotonic() - started
        world.commands.append(replace(command, seconds=took, num_writes=writes.stat().st_size))
    return world


def _write_inputs(root: Path, num_examples: int) -> None:
    from tests.integration.command_lines import write_examples, write_pair

    write_pair(root)
    write_examples(root / "data.jsonl", num_examples)


def _note_writes(path: Path) -> None:
    """A byte in a file for every time that something is forced or renamed."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    at_write(lambda: os.write(handle, b"."))


def at_the(count: int, act: Callable[[], object], *, and_after: bool = False) -> Callable[[], None]:
    """What makes a process act when it forces or renames a file for the `count`-th time, `and_after`: from then on."""

    def hook() -> None:
        left = count

        def one_less() -> None:
            nonlocal left
            left -= 1
            if left == 0 or (and_after and left < 0):
                act()

        at_write(one_less)

    return hook


def at_write(then: Callable[[], object]) -> None:
    """Have this process do something before it forces a file to disk or renames one: where crashes count."""
    for name in ("fsync", "replace", "rename"):
        setattr(os, name, _with(getattr(os, name), then))


def _with(real: Callable[..., Any], then: Callable[[], object]) -> Callable[..., Any]:
    def both(*arguments: Any, **named: Any) -> Any:
        then()
        return real(*arguments, **named)

    return both


# --------------------------------------------------------------------------- the three commands


def _align(world: World) -> Command:
    root = world.root
    words = ["sra-data", "align", "--teacher", root / "teacher", "--student", root / "student", "--edit-distance"]
    words += ["--data", root / "data.jsonl", "--dev-share", 0.2, "--workers", 1, "--json", "--out"]
    return Command("align", lambda folder: [*words, folder], _nothing, other_files, root / "whole" / "align")


def _cache(world: World) -> Command:
    aligned, teacher = world.root / "whole" / "align", world.root / "teacher"
    words = ["--teacher", teacher, "--hidden-dtype", "fp32", "--top-k", 4, "--device", "cpu", "--json"]
    return Command(
        "cache-teacher",
        lambda folder: ["sra-data", "cache-teacher", folder, *words],
        lambda folder: shutil.copytree(aligned, folder),
        other_pages,
        world.shards,
    )


def _run(world: World) -> Command:
    words = ["sra-train", "run", world.shards, "--epochs", 2, "--batch-size", 4, "--json"]
    words += ["--set", "tracking.plots=false", "--set", "checkpoints.every_steps=2", "--output-dir"]
    return Command("run", lambda folder: [*words, folder], _nothing, _other_run, world.trained, shares_work=False)


def _nothing(folder: Path) -> None:
    """The command makes its folder."""


# --------------------------------------------------------------------------- what is left


def files_of(folder: Path) -> dict[str, Path]:
    """Every file by its name in the folder."""
    return {str(path.relative_to(folder)): path for path in sorted(folder.rglob("*")) if path.is_file()}


def leftovers(folder: Path) -> list[str]:
    """Names of what only a process at work has."""
    found = (path for path in sorted(folder.rglob("*")) if path.name.startswith(".") or path.name.endswith(".tmp"))
    return [str(path.relative_to(folder)) for path in found]


def other_files(folder: Path, whole: Path, *, but: Callable[[str], bool] = lambda name: False) -> list[str]:
    """Files that are not there, should not be, or hold other bytes; those that `but` is true of are left out."""
    found, expected = files_of(folder), files_of(whole)
    names = [name for name in {**expected, **found} if not but(name)]
    wrong = [f"{name} is missing" for name in names if name not in found]
    wrong += [f"{name} is left over" for name in names if name not in expected]
    both = (name for name in names if name in found and name in expected)
    others = (name for name in both if found[name].read_bytes() != expected[name].read_bytes())
    return wrong + [f"{name} has other bytes" for name in others]


def other_pages(folder: Path, whole: Path) -> list[str]:
    """A teacher's receipts and its section of the manifest hold seconds; all else is compared byte by byte."""

    def is_measured(name: str) -> bool:
        return name == "manifest.json" or (name.startswith("teachers/") and name.split("/")[-1].startswith("part-"))

    wrong = other_files(folder, whole, but=lambda name: is_measured(name) and not name.endswith(".parquet"))
    found, expected = (json.loads((place / "manifest.json").read_text("utf-8")) for place in (folder, whole))
    for name, facts in expected["teachers"].items():
        had = found.get("teachers", {}).get(name, {})
        wrong += [f"the manifest does not say its {key}" for key in facts if key not in had]
        wrong += [f"{key} is another" for key in ("root", "index_sha256", "num_bytes") if had.get(key) != facts[key]]
        for receipt in sorted((whole / "teachers" / name).glob("part-*.receipt.json")):
            other = folder / "teachers" / name / receipt.name
            if not other.is_file() or _unmeasured(other) != _unmeasured(receipt):
                wrong.append(f"{receipt.name} says something else")
    return wrong + [f"{name} is left over" for name in leftovers(folder)]


def _unmeasured(path: Path) -> dict[str, Any]:
    return {key: value for key, value in json.loads(path.read_text("utf-8")).items() if key not in MEASURED}


def _other_run(folder: Path, whole: Path) -> list[str]:
    """Weights, optimizer and exported model byte by byte, every number of every step, and nothing half."""

    def is_measured(name: str) -> bool:
        return name.startswith(("metrics.", "checkpoints/", "run.json", "config.yaml", "model/README.md"))

    wrong = [f"{name} is left over" for name in leftovers(folder)]
    wrong += other_files(folder, whole, but=is_measured)
    last = sorted((whole / "checkpoints").iterdir())[-1]
    for name in ("model.safetensors", "optimizer.safetensors"):
        other = folder / "checkpoints" / last.name / name
        if not other.is_file() or other.read_bytes() != (last / name).read_bytes():
            wrong.append(f"{name} of {last.name} has other bytes")
    if _numbers(folder) != _numbers(whole):
        wrong.append("metrics.jsonl: other numbers")
    return wrong


def _numbers(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "metrics.jsonl").read_text("utf-8").splitlines() if (folder / "metrics.jsonl").is_file() else []
    return [{key: value for key, value in json.loads(line).items() if key not in MEASURED} for line in lines]
