"""Several processes as one: who shares what, and how their gradients become the large batch's.

accelerate starts the processes' talk, chooses the device and, for fp16, scales the loss; it prepares model and
optimizer, NEVER the data loader: what a rank reads is a pure function of the global step (data/order.py).

Every loss term is a sum over the micro-batch divided by a total of the GLOBAL step, so gradients have to be ADDED over
ranks. DDP averages: the loss is multiplied by the number of ranks. FSDP2 is told to divide by 1, which also keeps away
from gloo's way of summing where it should average (pytorch #162338).

FSDP2 is applied by `sharding.py` and not by accelerate, whose plugin quietly runs DDP on CPUs: one path, the one that
is tested.
"""

from __future__ import annotations

import os
import signal
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.state import AcceleratorState, is_initialized
from torch import nn

from sra_data.errors import ConfigError
from sra_train.config import TrainingConfig
from sra_train.memory import memory_refused
from sra_train.sharding import Parts, is_sharded, shard
from sra_train.student import StudentModel

TOO_LARGE = "take a smaller student, or training.strategy=fsdp2 on several GPUs"
COMPUTE_DTYPES: dict[str, torch.dtype | None] = {"no": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_precision(precision: str) -> str:
    """What `auto` means on this machine.

    Raises:
        ConfigError: If the machine cannot do what is asked.
    """
    has_gpu = torch.cuda.is_available()
    if precision == "auto":
        return "bf16" if has_gpu and torch.cuda.is_bf16_supported() else "no"
    if precision == "fp16" and not has_gpu:
        raise ConfigError("training.precision=fp16: needs a CUDA GPU; use bf16 or no")
    return precision


def make_accelerator(training: TrainingConfig) -> Accelerator:
    """The process group and device of this run, from the environment torchrun or accelerate launch set.

    Raises:
        ConfigError: If precision and strategy do not go together.
    """
    precision = resolve_precision(training.precision)
    if training.strategy == "fsdp2" and precision == "fp16":
        raise ConfigError("training.precision=fp16 with training.strategy=fsdp2: not supported; use bf16")
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # or accelerate warns that it sets it
    # bf16 needs nothing of accelerate: the student runs its own autocast; fp16 needs its loss scaling
    scaled = "fp16" if precision == "fp16" else "no"
    if is_initialized() and AcceleratorState().mixed_precision != scaled:
        AcceleratorState._reset_state()  # an earlier run's, of this process, which would be refused; the group stays
    return Accelerator(
        cpu=not torch.cuda.is_available(),
        mixed_precision=scaled,
        # buffers (a frozen teacher head) are equal everywhere and stay so: never send them round
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
    )


def is_to_be_sharded(accelerator: Accelerator, training: TrainingConfig) -> bool:
    """Whether no process is to hold the whole student."""
    return training.strategy == "fsdp2" and accelerator.num_processes > 1


def distribute(
    accelerator: Accelerator,
    student: StudentModel,
    training: TrainingConfig,
    groups_of: Any,
    parts: Parts | None = None,
) -> tuple[nn.Module, Any]:
    """Put the student on its device(s) and make its optimizer.

    Args:
        accelerator: Of this process.
        student: On the CPU.
        training: Strategy and AdamW's constants.
        groups_of: student -> the optimizer's parameter groups; called when the parameters are the final ones.
        parts: Of a student that no process but the first holds; see `sharding.load_in_parts`.

    Returns:
        The module to call in the loop, and accelerate's optimizer around AdamW.

    Raises:
        TrainingError: If the device has no room for the student.
    """
    if is_to_be_sharded(accelerator, training):
        shard(student, accelerator.device, parts)
    else:
        with memory_refused(accelerator.device, lambda: "the student's weights", lambda: TOO_LARGE):
            student.to(accelerator.device)
    optimizer = torch.optim.AdamW(
        groups_of(student),
        betas=(training.beta1, training.beta2),
        eps=training.epsilon,
        fused=accelerator.device.type == "cuda" or None,
    )
    if is_sharded(student):
        return student, accelerator.prepare_optimizer(optimizer)
    with warnings.catch_warnings():
        # accelerate hands on `broadcast_buffers`, which torch renamed; older ones know no other name
        warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
        return accelerator.prepare(student, optimizer)


def student_inside(model: nn.Module) -> StudentModel:
    """The `StudentModel` inside what the loop calls."""
    inner = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    assert isinstance(inner, StudentModel)
    return inner


def loss_factor(model: nn.Module, accelerator: Accelerator) -> float:
    """What the loss is multiplied by so that the gradients of all ranks add up."""
    return float(accelerator.num_processes) if isinstance(model, nn.parallel.DistributedDataParallel) else 1.0


@contextmanager
def gradient_exchange(model: nn.Module, *, now: bool) -> Iterator[None]:
    """Exchange gradients between ranks in the backward inside, or keep them for the step's last micro-batch."""
    if now or not (isinstance(model, nn.parallel.DistributedDataParallel) or is_sharded(model)):
        yield
    elif isinstance(model, nn.parallel.DistributedDataParallel):
        with model.no_sync():
            yield
    else:
        sharded: Any = model
        sharded.set_requires_gradient_sync(False)
        try:
            yield
        finally:
            sharded.set_requires_gradient_sync(True)


def sum_over_ranks(accelerator: Accelerator, values: torch.Tensor) -> torch.Tensor:
    """The element-wise sum of every rank's `values`."""
    if accelerator.num_processes > 1:
        torch.distributed.all_reduce(values)
    return values


def gather_objects(accelerator: Accelerator, value: Any) -> list[Any]:
    """Every rank's `value`, in rank order."""
    if accelerator.num_processes == 1:
        return [value]
    gathered: list[Any] = [None] * accelerator.num_processes
    torch.distributed.all_gather_object(gathered, value)
    return gathered


class StopRequest:
    """Turns the first Ctrl-C or SIGTERM into a request that is answered between two steps.

    An interrupt in the middle of a step would leave half-updated weights. The second Ctrl-C interrupts at once; a
    second SIGTERM does not, for a scheduler sends it to every process of a job, and torchrun hands its own on. Where
    the run is not in the main thread, signals stay what they were.
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    def _remember(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True

    def agreed(self, accelerator: Accelerator) -> bool:
        """Whether any rank was asked to stop; all ranks get the same answer. One process alone asks no device."""
        if accelerator.num_processes == 1:
            return self.requested
        flag = torch.tensor(float(self.requested), device=accelerator.device)
        return bool(sum_over_ranks(accelerator, flag) > 0)
