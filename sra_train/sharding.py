"""FSDP2, and a student that no process but the first ever holds whole.

The first process loads the student as ever, and proves it. The others build the same model on the meta device, where
tensors have shapes and no memory, and are told everything else by the first: whether it was refused, what it is made
of, and its numbers, block by block, each just before the block is sharded. So a process holds its shards, one block,
the output head and the input embeddings. The numbers are those the first one has read, to the last bit.

What only loading makes (an adapter's folder, a quantized checkpoint, a family that builds itself otherwise without
weights) is loaded whole on every process, as it always was: `outline` tells.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from sra_data.errors import SRAError
from sra_data.models.decoder import decoder_layers, unwrap
from sra_train.config import StudentConfig
from sra_train.student import StudentModel, declared_student, load_student

Made = TypeVar("Made")
FIRST = 0


def of_first(make: Callable[[], Made]) -> Made:
    """What the first process makes, on every process; all call it. What is refused there is refused on all.

    Raises:
        SRAError: With the first one's line.
    """
    told: list[Any] = [None, None]
    if torch.distributed.get_rank() == FIRST:
        try:
            told[0] = make()
        except SRAError as error:
            torch.distributed.broadcast_object_list([None, str(error)], src=FIRST)
            raise
    torch.distributed.broadcast_object_list(told, src=FIRST)
    if told[1] is not None:
        raise SRAError(told[1])
    made: Made = told[0]
    return made


def load_in_parts(
    name: str, options: StudentConfig, *, seed: int, device: torch.device
) -> tuple[nn.Module, Parts | None]:
    """`load_student`, on the first process alone, and what will give the others its numbers.

    Args:
        name: Hub id or folder.
        options: How to load it.
        seed: Of new weights.
        device: Of this process, through which numbers travel.

    Returns:
        The model: whole on the first process, on the others without memory but for its output head. And its parts;
        None where the others had to load it whole too.

    Raises:
        SRAError: As `load_student`, on all processes alike.
    """
    whole: list[nn.Module] = []

    def load() -> list[tuple[Any, ...]]:
        whole.append(load_student(name, options, seed=seed))
        return outline(whole[0])

    expected = of_first(load)
    model = whole[0] if whole else _declared(name, options)
    found: list[bool] = [False] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(found, model is not None and outline(model) == expected)
    if not all(found):
        return whole[0] if whole else load_student(name, options, seed=seed), None
    assert model is not None
    parts = Parts(model, device)
    parts.fill(unwrap(model).get_output_embeddings())  # methods may begin from it
    return model, parts


def _declared(name: str, options: StudentConfig) -> nn.Module | None:
    """The student without memory; None where it cannot be had so."""
    try:
        return declared_student(name, options)
    except Exception:  # whatever a library says of a model without memory: loading it says what is really wrong
        return None


def places(module: nn.Module) -> Iterator[tuple[dict[str, Any], str, Tensor]]:
    """Where a module itself keeps tensors: parameters, buffers, and attributes that are neither."""
    for place in (module._parameters, module._buffers, vars(module)):
        for name, value in list(place.items()):
            if isinstance(value, Tensor):
                yield place, name, value


def outline(model: nn.Module) -> list[tuple[Any, ...]]:
    """Every tensor of a model by its place: shape, dtype, whether it is trained, and which of them are one."""
    numbers: dict[int, int] = {}
    return [
        (
            f"{inside}.{name}",
            tuple(value.shape),
            str(value.dtype),
            isinstance(value, nn.Parameter),
            value.requires_grad,
            numbers.setdefault(id(value), len(numbers)),
        )
        for inside, module in model.named_modules()
        for _, name, value in places(module)
    ]


class Parts:
    """Gives the tensors of a model that stands on the meta device the numbers of the first process's.

    Args:
        model: Of the same outline on every process.
        device: Through which numbers travel: a GPU where processes talk by NCCL.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self.model = model
        self.device = device
        self.is_first = torch.distributed.get_rank() == FIRST
        numbers: dict[int, int] = {}
        # Numbered before anything is sharded: tensors come and go, and their ids with them.
        self._numbers = {
            (id(module), name): numbers.setdefault(id(value), len(numbers))
            for module in model.modules()
            for _, name, value in places(module)
        }
        self._uses = Counter(self._numbers.values())
        self._arrived: dict[int, Tensor | None] = {}
        self._done: set[int] = set()

    def fill(self, module: nn.Module) -> None:
        """Fill a module and all in it that has not been; every process calls it alike."""
        for inside in module.modules():
            if id(inside) in self._done:
                continue
            self._done.add(id(inside))
            for place, name, value in places(inside):
                number = self._numbers.get((id(inside), name))
                if number is None:  # put there since, the same everywhere
                    continue
                if number not in self._arrived:
                    arrived = self._sent(value)
                    self._arrived[number] = arrived if self._uses[number] > 1 else None
                else:
                    arrived = self._arrived[number]
                if not self.is_first:
                    assert arrived is not None
                    place[name] = arrived

    def _sent(self, value: Tensor) -> Tensor | None:
        """The first process's numbers on the CPU, where they were loaded; None on the first itself, which has them."""
        if self.is_first:
            moving = value.detach().to(self.device).contiguous()
        else:
            moving = torch.empty(value.shape, dtype=value.dtype, device=self.device)
        if moving.numel():  # as bytes: not every dtype can travel everywhere
            torch.distributed.broadcast(moving.reshape(-1).view(torch.uint8), src=FIRST)
        if self.is_first:
            return None
        arrived = moving.cpu()
        return nn.Parameter(arrived, requires_grad=value.requires_grad) if isinstance(value, nn.Parameter) else arrived


def shard(student: StudentModel, device: torch.device, parts: Parts | None = None) -> None:
    """FSDP2 in place: every decoder block its own group, all the rest (embeddings, head, projectors) the root's.

    Args:
        student: On the CPU.
        device: Of this process.
        parts: Of its model, which then arrives block by block.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard

    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for block in decoder_layers(student.model):
        if parts is not None:
            parts.fill(block)
        fully_shard(block, mesh=mesh)
    if parts is not None:
        parts.fill(student.model)
    fully_shard(student, mesh=mesh)
    for module in student.modules():
        if isinstance(module, FSDPModule):
            divide: Any = getattr(module, "set_gradient_divide_factor", None) or module.set_reduce_scatter_divide_factor
            divide(1.0)
            if hasattr(module, "set_force_sum_reduction_for_comms"):  # gloo knows plain sums only; torch >= 2.8
                module.set_force_sum_reduction_for_comms(True)


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 holds the parameters."""
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)
