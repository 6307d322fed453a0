"""Checkpoints: all of a run's state, written whole or not at all, and refused by any other run.

    <output_dir>/checkpoints/step-00000120/
        model.safetensors       trained weights, projectors and buffers, full (unsharded), each shared tensor once;
                                what is frozen (a LoRA student's base) comes from the student's own folder again
        optimizer.safetensors   the optimizer's tensors as `<parameter>/<name>`
        state.json              step, progress, identity, the optimizer's plain values, xxh3 of the two files above,
                                and a seal, the sha256 of all that (`sra_data/shards/durable.py`)

No pickle is written and none is read. The folder is written under a temporary name, every file and then the folder is
flushed to disk, and only then renamed: a checkpoint exists completely or not at all.

A checkpoint that is not whole is passed over for the one before (`resuming.py`), and keeps what is left of it under
another name. Whatever else lies in the folder is nobody's business here: it is neither read nor removed.

The data state is ONE integer, the number of steps done. The learning rate is a pure function of it, and so are the
random numbers: each micro-batch seeds its generators from (seed, step, micro-batch, rank), see `loop.seed_step`. So
scheduler and random state are saved exactly by being nothing but (seed, step).

Tensors are named by parameter, not by rank: a checkpoint of two processes continues on one or four.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sra_data.errors import DamagedError, ShardError, TrainingError, one_line
from sra_data.shards.durable import SEAL, flush, read_document, sealed_bytes
from sra_data.shards.metadata import Count, Strict, Xxh3, checked
from sra_train.record.files import remove
from sra_train.record.identity import TOTAL, refuse_another
from sra_train.sharding import is_sharded, of_first

CHECKPOINT_VERSION = 4
PREFIX = "step-"
OWN_NAME = re.compile(rf"{PREFIX}([0-9]{{8,18}})")
STATE = "state.json"
WRITING, REPLACED, DROPPED = ".writing-", ".replaced-", ".dropped-"  # what only a process at work has
DAMAGED = "damaged-"
NOT_WHOLE = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EIO)  # of a file that should be there
READ_SIZE = 1 << 22
MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"
LONGEST_SHOWN = 60


@dataclass
class Progress:
    """Where a run stands; `step` is the state of the data stream."""

    step: int = 0  # global steps done
    tokens: int = 0  # student tokens seen, over all processes
    seconds: float = 0.0  # spent training, resumes included
    best_metric: float | None = None
    best_step: int | None = None
    evaluations_without_better: int = 0
    evaluated_step: int | None = None  # of the last evaluation; a stop may have come before one that was due
    stopped_early: bool = False
    extended_at: list[int] = field(default_factory=list)  # steps at which the finished run was given more
    skipped_steps: int = 0  # fp16: steps left out because gradients overflowed
    scaler: dict[str, Any] = field(default_factory=dict)  # fp16: the loss scale and its counters


class ProgressRecord(Strict):
    """`Progress` as state.json must say it."""

    step: Count
    tokens: Count
    seconds: float
    best_metric: float | None
    best_step: Count | None
    evaluations_without_better: Count
    evaluated_step: Count | None
    stopped_early: bool
    extended_at: list[Count]
    skipped_steps: Count
    scaler: dict[str, Any]


class FileHashes(Strict):
    """Of the two files beside state.json."""

    model: Xxh3 = Field(alias="model.safetensors")
    optimizer: Xxh3 = Field(alias="optimizer.safetensors")


class GroupRecord(BaseModel):
    """What the schedule and the step read of a group of parameters; the optimizer's own switches stand beside it."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    params: list[str]
    lr: float
    peak: float
    weight_decay: float
    betas: list[float] = Field(min_length=2, max_length=2)


class OptimizerRecord(Strict):
    """The optimizer's plain values."""

    values: dict[str, dict[str, Any]]
    param_groups: list[GroupRecord]


class StateRecord(Strict):
    """What state.json may say."""

    version: int
    progress: ProgressRecord
    identity: dict[str, Any]
    optimizer: OptimizerRecord
    xxh3: FileHashes
    seal: str


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Where they are.
        keep_last: How many are kept beside the best.
        identity: What this run is, as flat names and plain values; a checkpoint with another is refused.
    """

    def __init__(self, folder: Path, *, keep_last: int, identity: Mapping[str, Any]) -> None:
        self.folder = folder
        self.keep_last = keep_last
        self.identity = json.loads(json.dumps(identity))  # as it will read back: tuples become lists

    def path(self, step: int) -> Path:
        """Where the checkpoint after `step` steps is."""
        return self.folder / f"{PREFIX}{step:08d}"

    def steps(self) -> list[int]:
        """The checkpoints that exist, in order."""
        return sorted(int(path.name.removeprefix(PREFIX)) for path in self.own())

    def own(self, prefix: str = "") -> list[Path]:
        """The folders whose names are those of checkpoints, behind `prefix`."""
        found = [path for path in self.folder.glob(f"{prefix}{PREFIX}*") if path.is_dir()]
        return [path for path in found if self.is_own_name(path.name.removeprefix(prefix))]

    def is_own_name(self, name: str) -> bool:
        """Whether `path` gives a checkpoint this name."""
        found = OWN_NAME.fullmatch(name)
        return found is not None and self.path(int(found[1])).name == name

    def write(self, *, model: Mapping[str, Tensor], optimizer: Mapping[str, Any], progress: Progress) -> Path:
        """Write one checkpoint (on one process) and drop those no longer kept.

        Args:
            model: Full state by name, as `full_state` gives it.
            optimizer: `{"state": {parameter: {name: value}}, "param_groups": [...]}`, likewise.
            progress: Where the run stands.

        Raises:
            TrainingError: If the disk refuses; the checkpoints that are there stay.
        """
        final = self.path(progress.step)
        try:
            self._write(final, model, optimizer, progress)
        except (OSError, SafetensorError) as error:
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise TrainingError(
                f"{final}: cannot be written ({reason}); free space there and run the same command again, it goes on"
                " from the checkpoint before"
            ) from error
        self.prune(progress.best_step)
        return final

    def _write(
        self, final: Path, model: Mapping[str, Tensor], optimizer: Mapping[str, Any], progress: Progress
    ) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f"{WRITING}{final.name}"
        remove(temporary)
        try:
            temporary.mkdir()
            tensors, plain = split_optimizer_state(optimizer["state"])
            save_file(dict(model), temporary / MODEL)
            save_file(tensors, temporary / OPTIMIZER)
            state = {
                "version": CHECKPOINT_VERSION,
                "progress": asdict(progress),
                "identity": self.identity,
                "optimizer": {"values": plain, "param_groups": optimizer["param_groups"]},
                "xxh3": {name: file_hash(temporary / name) for name in (MODEL, OPTIMIZER)},
            }
            (temporary / STATE).write_bytes(sealed_bytes(state))
            publish(temporary, final)
        finally:
            with suppress(OSError):  # what is half takes space that a full disk has not
                remove(temporary)

    def prune(self, best_step: int | None) -> None:
        """Delete all but the last `keep_last` and the best; under another name, so that no half one is ever seen.

        Raises:
            TrainingError: If the system will not have it.
        """
        steps = self.steps()
        with self._clearing():
            for step in steps[: -self.keep_last]:
                if step != best_step:
                    dropped = self.folder / f"{DROPPED}{self.path(step).name}"
                    os.rename(self.path(step), dropped)
                    remove(dropped)

    def tidy(self) -> None:
        """Remove what a killed process has left half; only a process that has claimed the run's folder may.

        A checkpoint that was moved aside for one that never came gets its name back.

        Raises:
            TrainingError: If the system will not have it.
        """
        with self._clearing():
            for replaced in self.own(REPLACED):
                final = self.folder / replaced.name.removeprefix(REPLACED)
                if not final.exists():
                    os.rename(replaced, final)
            for prefix in (WRITING, REPLACED, DROPPED):
                for path in self.own(prefix):
                    remove(path)

    @contextmanager
    def _clearing(self) -> Iterator[None]:
        """What the system says to a name that should go or change, as one line."""
        try:
            yield
        except OSError as error:
            raise TrainingError(
                f"{self.folder}: what is not needed there cannot be removed ({error.strerror or error}:"
                f" {Path(error.filename or '').name}); make the folder writable and run the same command again"
            ) from error

    def set_aside(self, step: int) -> Path:
        """Take a damaged checkpoint's name, so that it is not counted among those that are kept; where it is now.

        Raises:
            TrainingError: If the system will not have it.
        """
        aside = self.folder / f"{DAMAGED}{self.path(step).name}"
        with self._clearing():
            remove(aside)
            os.rename(self.path(step), aside)
        return aside

    def read_state(self, step: int, *, of_any_length: bool = False) -> dict[str, Any]:
        """state.json of a checkpoint of THIS run, or of the finished run that this one extends.

        Args:
            step: Whose.
            of_any_length: Whether it may be one from the middle of the run that this one extends.

        Raises:
            DamagedError: If it is not whole.
            TrainingError: If it is another run's, of another version, or may not be read.
        """
        path = self.path(step)
        remedy = f"delete {path} to go on from the checkpoint before"
        try:
            document = read_document(path / STATE, remedy=remedy)
            version = document.value.get("version")
            if version != CHECKPOINT_VERSION and (document.is_whole or SEAL not in document.value):
                shown = str(version)[:LONGEST_SHOWN]
                raise TrainingError(
                    f"{path}: checkpoint version {shown}, this build reads {CHECKPOINT_VERSION};"
                    " choose a new --output-dir"
                )
            if not document.is_whole:
                raise DamagedError(f"{path / STATE}: damaged, its seal is not that of its content", remedy)
            checked(StateRecord, document.value, where=path / STATE, remedy=remedy)
        except ShardError as error:
            refuse_unreadable(error.__cause__, path / STATE)
            raise DamagedError(str(error).removesuffix(f"; {remedy}"), remedy) from None
        state = document.value
        if state["progress"]["step"] != step:
            raise DamagedError(f"{path / STATE}: says it is of step {state['progress']['step']}", remedy)
        what = f"{path}: a checkpoint of another run"
        is_shorter = refuse_another(state["identity"], self.identity, what=what, other="a new --output-dir")
        if is_shorter and not of_any_length and not is_finished(state["progress"], state["identity"]):
            raise TrainingError(
                f"{path}: of a run of {state['identity'][TOTAL]} steps, which is not finished; finish it with the old"
                " values, then give it more"
            )
        return state

    def read_whole_state(self, step: int, *, of_any_length: bool = False) -> dict[str, Any]:
        """`read_state`, once the two files beside it have their checksums too; raises as it does."""
        state = self.read_state(step, of_any_length=of_any_length)
        path = self.path(step)
        for name, expected in state["xxh3"].items():
            if file_hash(path / name) != expected:
                raise DamagedError(
                    f"{path / name}: damaged, its checksum is not the recorded {expected}",
                    f"delete {path} to go on from the checkpoint before",
                )
        return state

    def load(
        self, step: int, state: Mapping[str, Any], *, with_tensors: bool = True
    ) -> tuple[dict[str, Tensor], dict[str, Any], Progress]:
        """(model state, optimizer state, progress) as `write` was given them; `state` as `read_whole_state` gives it.

        Without tensors both states are empty: for a process that is handed them by the first.

        Raises:
            DamagedError: If a file is no safetensors.
        """
        if not with_tensors:
            return {}, {}, Progress(**state["progress"])
        path = self.path(step)
        optimizer = {
            "state": join_optimizer_state(load_tensors(path / OPTIMIZER), state["optimizer"]["values"]),
            "param_groups": state["optimizer"]["param_groups"],
        }
        return load_tensors(path / MODEL), optimizer, Progress(**state["progress"])

    def read(self, step: int) -> tuple[dict[str, Tensor], dict[str, Any], Progress]:
        """`load`, of a checkpoint that is whole; raises as `read_whole_state` does."""
        return self.load(step, self.read_whole_state(step))

    def read_model(self, step: int) -> dict[str, Tensor]:
        """The weights and projectors of one checkpoint, from before an extension too."""
        self.read_whole_state(step, of_any_length=True)
        return load_tensors(self.path(step) / MODEL)


def is_finished(progress: Mapping[str, Any], identity: Mapping[str, Any]) -> bool:
    """Whether a run of that identity has nothing left to do."""
    total = identity.get(TOTAL)
    return bool(progress["stopped_early"]) or (isinstance(total, int) and progress["step"] >= total)


def publish(temporary: Path, final: Path) -> None:
    """Flush everything in `temporary`, then make it appear as `final` in one move."""
    for path in temporary.iterdir():
        flush(path)
    flush(temporary)
    replaced = final.parent / f"{REPLACED}{final.name}"
    remove(replaced)
    if final.exists():  # the same step again, after an interruption right behind it
        os.rename(final, replaced)
    os.rename(temporary, final)
    flush(final.parent)
    with suppress(OSError):
        remove(replaced)


def refuse_unreadable(error: BaseException | None, path: Path) -> None:
    """What the system will not let be read is not damaged.

    Raises:
        TrainingError: If that is what `error` says.
    """
    if isinstance(error, OSError) and error.errno not in NOT_WHOLE:
        raise TrainingError(
            f"{path}: cannot be read ({error.strerror}); make it readable and run the same command again"
        ) from None


def load_tensors(path: Path) -> dict[str, Tensor]:
    """A safetensors file.

    Raises:
        DamagedError: If it is none.
    """
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        said = one_line(error)
        raise DamagedError(
            f"{path}: damaged ({said})", f"delete {path.parent} to go on from the checkpoint before"
        ) from None


def file_hash(path: Path) -> str:
    """xxh3 of a file's bytes: safetensors itself gives a flipped bit back without a word.

    Raises:
        DamagedError: If the file is missing.
        TrainingError: If it may not be read.
    """
    digest = xxhash.xxh3_64()
    try:
        with path.open("rb") as file:
            while block := file.read(READ_SIZE):
                digest.update(block)
    except OSError as error:
        refuse_unreadable(error, path)
        raise DamagedError(
            f"{path}: {error.strerror}", f"delete {path.parent} to go on from the checkpoint before"
        ) from None
    return digest.hexdigest()


def split_optimizer_state(
    state: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Tensor], dict[str, dict[str, Any]]]:
    """Tensors as `<parameter>/<name>`, everything else as plain values by parameter and name."""
    tensors: dict[str, Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for parameter, values in state.items():
        for name, value in values.items():
            if isinstance(value, Tensor):
                tensors[f"{parameter}/{name}"] = value.contiguous()
            else:
                plain.setdefault(parameter, {})[name] = value
    return tensors, plain


def join_optimizer_state(
    tensors: Mapping[str, Tensor], plain: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """The inverse of `split_optimizer_state`."""
    state: dict[str, dict[str, Any]] = {parameter: dict(values) for parameter, values in plain.items()}
    for key, tensor in tensors.items():
        parameter, _, name = key.rpartition("/")
        state.setdefault(parameter, {})[name] = tensor
    return state


def full_state(model: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The unsharded state of a (possibly distributed) model and optimizer on the CPU; every process must call it.

    Shared tensors (a tied head) are given once, under their first name, because safetensors refuses to write shared
    memory. The result is filled on the first process only when the model is sharded.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        get_model_state_dict,
        get_optimizer_state_dict,
    )

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    named = own_names(model)
    weights: dict[str, Any] = get_model_state_dict(model, options=options)
    moments: dict[str, Any] = get_optimizer_state_dict(model, optimizer, options=options)
    return {name: weights[name].contiguous() for name in named if name in weights}, moments


def own_names(model: nn.Module) -> list[str]:
    """Names of trained parameters, each shared one under its first name only, and of persistent buffers."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    trained = [name for name, parameter in inner.named_parameters() if parameter.requires_grad]
    every_parameter = {name for name, _ in inner.named_parameters(remove_duplicate=False)}
    return trained + [name for name in inner.state_dict(keep_vars=True) if name not in every_parameter]


def refuse_other_tensors(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Refuse a model's state of other names.

    Raises:
        TrainingError: Naming some that are not in both.
    """
    wanted = set(own_names(model))
    if wanted != set(weights):
        different = sorted(wanted.symmetric_difference(weights))[:3]
        raise TrainingError(
            f"checkpoint: its tensors are not the model's (for example {', '.join(different)});"
            " use the student and the method the run began with, or a new --output-dir"
        )


def refuse_other_moments(model: nn.Module, moments: Mapping[str, Any]) -> None:
    """Refuse an optimizer's state of other parameters, or of other shapes: torch would take it, and fail in a step.

    Raises:
        TrainingError: Naming the first parameter.
    """
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    shapes = {name: tuple(one.shape) for name, one in inner.named_parameters() if one.requires_grad}
    grouped = {name for group in moments["param_groups"] for name in group["params"]}
    kinds = {kind for values in moments["state"].values() for kind in values}
    for name in sorted({*grouped, *shapes, *moments["state"]}):
        values = moments["state"].get(name, {})
        found = {tuple(value.shape) for value in values.values() if isinstance(value, Tensor) and value.dim() > 0}
        is_whole = name in shapes and name in grouped and (not values or kinds == set(values))
        if not is_whole or found - {shapes[name]}:
            raise TrainingError(
                f"checkpoint: what the optimizer remembers of {name} is not of the model's tensor of that name; use the"
                " student and the method the run began with, or a new --output-dir"
            )


def load_full_state(
    model: nn.Module,
    optimizer: torch.optim.Optimizer | None,
    weights: dict[str, Tensor],
    moments: dict[str, Any] | None,
) -> None:
    """Put a full state into a (possibly distributed) model and optimizer; every process calls it with the same state.

    Of a sharded model the first process's is taken, and the others need none.

    Raises:
        TrainingError: If names or shapes do not fit.
    """
    from torch.distributed.checkpoint.state_dict import (
        StateDictOptions,
        set_model_state_dict,
        set_optimizer_state_dict,
    )

    from_first = is_sharded(model)

    def fits() -> None:
        refuse_other_tensors(model, weights)
        if moments is not None:
            refuse_other_moments(model, moments)

    if from_first:
        of_first(fits)
    else:
        fits()
    shared: dict[str, Any] = {"full_state_dict": True, "broadcast_from_rank0": from_first}
    try:
        set_model_state_dict(model, dict(weights), options=StateDictOptions(strict=False, **shared))
        if optimizer is not None and moments is not None:
            set_optimizer_state_dict(model, optimizer, moments, options=StateDictOptions(**shared))
            for group in optimizer.param_groups:
                group["betas"] = tuple(group["betas"])  # JSON knows lists only
    except (AttributeError, KeyError, RuntimeError, TypeError, ValueError) as error:
        reason = one_line(error, 200)
        raise TrainingError(
            f"checkpoint: its tensors do not fit the model ({reason}); use the student and the method the run began"
            " with, or a new --output-dir"
        ) from error
