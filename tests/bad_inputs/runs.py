"""Folders of runs that are none, or no more: each is to be gone on with, by the command that made it.

The folder has one checkpoint, that of the last step, and no model: what is left to do is to read it and to export.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import RUN, Case, Prepare
from tests.bad_inputs.shards import cut, edited, flipped, folder_at, gone, holding, pipe_at, the
from tests.crash.world import World

Damage = Callable[[Path], object]
AGAIN = f"{RUN} SHARDS --set checkpoints.every_steps=2"
STEP = "checkpoints/step-*"
STATE = f"{STEP}/state.json"
WRITTEN_AGAIN = ("out/run.json", "out/config.yaml")  # by a run that goes on, before it reads its tensors


def run_folder(damage: Damage, *, step: int = 6) -> Prepare:
    """The world's run under the name out, with one checkpoint alone, damaged: the last, after which no step is left."""

    def prepare(place: Path, world: World) -> None:
        out = place / "out"
        shutil.copytree(world.trained, out)
        shutil.rmtree(out / "model")
        for path in out.glob(STEP):
            if path.name != f"step-{step:08d}":
                shutil.rmtree(path)
        damage(out)

    return prepare


def forged(change: Callable[[dict[str, Any]], object]) -> Damage:
    """With a state.json changed and sealed anew."""

    def damage(out: Path) -> None:
        from sra_data.shards.durable import write_sealed

        path = the(out, STATE)
        value = json.loads(path.read_text())
        change(value)
        write_sealed(path, value)

    return damage


def identity(change: Callable[[dict[str, Any]], object]) -> Damage:
    """With another run in run.json."""

    def damage(out: Path) -> None:
        value = json.loads((out / "run.json").read_text())
        change(value)
        (out / "run.json").write_text(json.dumps(value))

    return damage


def tensors(name: str, change: Callable[[dict[str, Any]], object]) -> Damage:
    """With other tensors in a checkpoint's file, whose hash fits."""

    def damage(out: Path) -> None:
        from safetensors.torch import load_file, save_file

        from sra_data.shards.durable import write_sealed
        from sra_train.record.checkpoint import file_hash

        path, state = the(out, f"{STEP}/{name}"), the(out, STATE)
        found = load_file(path)
        change(found)
        save_file(found, path)
        value = json.loads(state.read_text())
        value["xxh3"][name] = file_hash(path)
        write_sealed(state, value)

    return damage


def _drop_first(found: dict[str, Any]) -> None:
    found.pop(sorted(found)[0])


def _widen_first(found: dict[str, Any]) -> None:
    import torch

    name = next(name for name in sorted(found) if found[name].dim() > 0)
    found[name] = torch.cat([found[name], found[name]])


def _beside(name: str, content: bytes) -> Damage:
    return lambda out: (out / name).write_bytes(content)


def _file_for(pattern: str) -> Damage:
    """With a file in the place of a folder."""

    def damage(out: Path) -> None:
        path = the(out, pattern)
        shutil.rmtree(path)
        path.write_text("no folder")

    return damage


# What is wrong: how, and what the line says beside the folder's name.
DAMAGED: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "no run.json": (gone("run.json"), ("not the folder of a run",)),
    "a run.json of nothing": (holding("run.json", b""), ("run.json", "damaged")),
    "a run.json that is cut": (cut("run.json", 0.5), ("run.json", "damaged")),
    "a run.json of bytes": (holding("run.json", b"\xff\xfe{}"), ("run.json", "damaged")),
    "a run.json that is a list": (holding("run.json", b"[]"), ("run.json", "damaged")),
    "a run.json of null": (holding("run.json", b"null"), ("run.json", "damaged")),
    "a run.json nested too deep": (holding("run.json", b'{"identity":' * 50_000), ("run.json", "damaged")),
    "a run.json that is a folder": (folder_at("run.json"), ("out",)),
    "a run.json that is a pipe": (pipe_at("run.json"), ("out",)),
    "a run without an identity": (identity(lambda value: value.pop("identity")), ("run.json", "damaged")),
    "an identity that is a list": (identity(lambda value: value.update(identity=[])), ("run.json", "damaged")),
    "an identity that is empty": (identity(lambda value: value.update(identity={})), ("holds another run",)),
    "another number of steps": (
        identity(lambda value: value["identity"].update(total_steps=7)),
        ("holds another run", "total_steps: 7 then, 6 now"),
    ),
    "a seed that is a list": (
        identity(lambda value: value["identity"].update({"training.seed": [[]]})),
        ("holds another run", "training.seed"),
    ),
    "a value of thousands of letters": (
        identity(lambda value: value["identity"].update({"training.seed": "n" * 9000})),
        ("holds another run", "training.seed"),
    ),
    "a checkpoint of nothing": (lambda out: [one.unlink() for one in the(out, STEP).iterdir()], ("state.json",)),
    "checkpoints that are a file": (_file_for("checkpoints"), ("checkpoints",)),
    "no state.json": (gone(STATE), ("state.json", "missing")),
    "a state.json of nothing": (holding(STATE, b""), ("state.json", "damaged")),
    "a state.json that is cut": (cut(STATE, 0.7), ("state.json", "damaged")),
    "a state.json of bytes": (holding(STATE, b"\x00\xff"), ("state.json", "damaged")),
    "a state.json that is a list": (holding(STATE, b"[1, 2]"), ("state.json", "list")),
    "a state.json nested too deep": (holding(STATE, b"[" * 100_000), ("state.json", "damaged")),
    "a state.json that is a folder": (folder_at(STATE), ("state.json",)),
    "a state.json that is a pipe": (pipe_at(STATE), ("state.json",)),
    "a state.json edited by hand": (edited(STATE, '"step": 6', '"step": 5'), ("state.json", "seal")),
    "a state of a version to come": (forged(lambda value: value.update(version=99)), ("version 99",)),
    "a state without a version": (forged(lambda value: value.pop("version")), ("version None",)),
    "a state without progress": (forged(lambda value: value.pop("progress")), ("state.json", "progress")),
    "a state without hashes": (forged(lambda value: value.pop("xxh3")), ("state.json", "xxh3")),
    "steps below none": (forged(lambda value: value["progress"].update(step=-1)), ("state.json", "step")),
    "steps in words": (forged(lambda value: value["progress"].update(step="six")), ("state.json", "step")),
    "steps beyond the run": (forged(lambda value: value["progress"].update(step=600)), ("state.json", "600")),
    "seconds that are a list": (forged(lambda value: value["progress"].update(seconds=[])), ("state.json", "seconds")),
    "a best step that has no checkpoint": (forged(lambda value: value["progress"].update(best_step=3)), ("step-",)),
    "a key that there is not": (forged(lambda value: value["progress"].update(mood="good")), ("state.json", "mood")),
    "an identity of another run": (
        forged(lambda value: value["identity"].update({"training.batch_size": 5})),
        ("another run", "training.batch_size: 5 then, 4 now"),
    ),
    "no weights": (gone(f"{STEP}/model.safetensors"), ("model.safetensors",)),
    "weights that are cut": (cut(f"{STEP}/model.safetensors", 0.5), ("model.safetensors", "damaged")),
    "weights with a bit turned around": (flipped(f"{STEP}/model.safetensors", 0.9), ("model.safetensors", "damaged")),
    "weights that are a folder": (folder_at(f"{STEP}/model.safetensors"), ("model.safetensors",)),
    "weights of prose, with their hash": (
        lambda out: (holding(f"{STEP}/model.safetensors", b"Dear reader, " * 9)(out), _rehashed(out)),
        ("model.safetensors", "damaged"),
    ),
    "weights that lack a tensor": (tensors("model.safetensors", _drop_first), ("checkpoint", "tensors")),
    "weights with a tensor of another shape": (tensors("model.safetensors", _widen_first), ("checkpoint", "tensors")),
    "no moments": (gone(f"{STEP}/optimizer.safetensors"), ("optimizer.safetensors",)),
    "moments with a bit turned around": (flipped(f"{STEP}/optimizer.safetensors", 0.9), ("optimizer.safetensors",)),
    "moments of another shape": (tensors("optimizer.safetensors", _widen_first), ("checkpoint",)),
    "moments that lack a tensor": (tensors("optimizer.safetensors", _drop_first), ("checkpoint",)),
    "numbers of a run that are a folder": (folder_at("metrics.jsonl"), ("metrics.jsonl",)),
    "a table of a run that is a folder": (folder_at("metrics.csv"), ("metrics.csv",)),
    "a configuration that is a folder": (folder_at("config.yaml"), ("config.yaml",)),
    "a model that is a file": (_beside("model", b"no folder"), ("model",)),
}

# Of a run that is in the middle: what the next step reads.
MIDWAY: dict[str, tuple[Damage, tuple[str, ...]]] = {
    "groups of no parameters": (
        forged(lambda value: value["optimizer"].update(param_groups=[])),
        ("checkpoint",),
    ),
    "groups of numbers": (forged(lambda value: value["optimizer"].update(param_groups=[1])), ("param_groups",)),
    "groups of parameters that there are not": (
        forged(lambda value: value["optimizer"]["param_groups"][0].update(params=["nothing"])),
        ("checkpoint",),
    ),
    "betas that are text": (
        forged(lambda value: value["optimizer"]["param_groups"][0].update(betas="high")),
        ("checkpoint",),
    ),
    "a peak that is text": (
        forged(lambda value: value["optimizer"]["param_groups"][0].update(peak="high")),
        ("checkpoint",),
    ),
    "a group without a peak": (
        forged(lambda value: value["optimizer"]["param_groups"][0].pop("peak")),
        ("checkpoint", "peak"),
    ),
}


def _rehashed(out: Path) -> None:
    from sra_data.shards.durable import write_sealed
    from sra_train.record.checkpoint import file_hash

    state = the(out, STATE)
    value = json.loads(state.read_text())
    value["xxh3"]["model.safetensors"] = file_hash(the(out, f"{STEP}/model.safetensors"))
    write_sealed(state, value)


OTHERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "another rate": (f"{AGAIN} --learning-rate 0.1", ("holds another run", "training.learning_rate")),
    "another method": (f"{AGAIN} --method sft", ("holds another run", "method.alpha: 0.5 then, absent now")),
    "another student": (f"{AGAIN} --set student.init=random", ("holds another run", "student.init")),
    "another seed": (f"{AGAIN} --seed 7", ("holds another run", "training.seed: 42 then, 7 now")),
    "adapters": (f"{AGAIN} --lora", ("holds another run", "student.lora")),
    "another window": (f"{AGAIN} --set data.window=3", ("holds another run", "data.window: 8 then, 3 now")),
    "another precision": (f"{AGAIN} --precision bf16", ("holds another run", "training.precision")),
}

CASES: list[Case] = [
    *(
        Case(f"runs: {wrong}", AGAIN, ("out", *says), run_folder(damage), leaves=WRITTEN_AGAIN)
        for wrong, (damage, says) in DAMAGED.items()
    ),
    *(
        Case(f"runs: in the middle, {wrong}", AGAIN, says, run_folder(damage, step=4), leaves=WRITTEN_AGAIN)
        for wrong, (damage, says) in MIDWAY.items()
    ),
    *(
        Case(f"runs: gone on with by {wrong}", line, ("out", *says), run_folder(lambda out: None))
        for wrong, (line, says) in OTHERS.items()
    ),
    Case(
        "runs: a run.json that may not be read",
        AGAIN,
        ("run.json",),
        run_folder(lambda out: (out / "run.json").chmod(0)),
        is_nobody=True,
    ),
    Case(
        "runs: a folder that may not be written",
        AGAIN,
        ("out",),
        run_folder(lambda out: [one.chmod(0o555) for one in (*(p for p in out.rglob("*") if p.is_dir()), out)]),
        is_nobody=True,
    ),
    Case(
        "runs: a folder that is a link to nothing",
        AGAIN,
        ("out",),
        lambda place, world: (place / "out").symlink_to("x"),
    ),
]
