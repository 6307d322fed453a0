"""One teacher in several processes of torchrun, each with a part of every layer (tensor parallel).

The first process leads. It alone reads shards, writes pages and speaks; the others hold their part of the same teacher
and take part in every forward that the leader begins (`following.py`), so that whatever the leader does with its
teacher (admission, calibration, units, faithfulness) is written once, for one process. What crosses between processes
are the tokens of a batch, and what the layers' own products need.

Each process has its share of the attention heads, so a row of attention, which is a sum over heads, is summed over the
processes (`Team.total`). Output head and input embeddings are whole in each: the head's product is the leader's alone.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError, ModelError
from sra_data.models.decoder import decoder_body
from sra_data.models.devices import without_numbers
from sra_data.teacher.spec import TeacherSpec

WHOLE = "replicate"  # transformers' name of what is not cut
SET_BY_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@dataclass(frozen=True)
class Load:
    """An order: load this teacher."""

    spec: TeacherSpec


@dataclass(frozen=True)
class Forward:
    """An order: take part in a forward of the body.

    Attributes:
        ids: [B, N] of the batch.
        layers: whose attention is read; none where it is not.
        query_index: [B], the query whose row is read; None where none is.
        all_layers: whether the body lists its hidden states.
    """

    ids: Tensor
    layers: tuple[int, ...]
    query_index: Tensor | None
    all_layers: bool


@dataclass(frozen=True)
class End:
    """The last order; `is_well` where the leader came to its end, and was not refused."""

    is_well: bool


Order = Load | Forward | End


@dataclass
class Team:
    """The processes of one teacher.

    Attributes:
        rank: of this one; 0 leads.
        size: how many there are.
        reading: layers and query whose attention the leader's next forward reads.
        is_between: whether the others wait for an order, and none of them is inside a forward.
    """

    rank: int
    size: int
    reading: tuple[tuple[int, ...], Tensor | None] = ((), None)
    is_between: bool = True

    @property
    def leads(self) -> bool:
        """Whether this process does."""
        return self.rank == 0

    def tell(self, order: Order) -> None:
        """Give the others an order."""
        torch.distributed.broadcast_object_list([order], src=0, device=torch.device("cpu"))

    def hear(self) -> Order:
        """The leader's next order.

        Raises:
            ModelError: If the leader is gone.
        """
        heard: list[Any] = [None]
        try:
            torch.distributed.broadcast_object_list(heard, src=0, device=torch.device("cpu"))
        except RuntimeError:
            raise ModelError("--tensor-parallel: the first process has ended; its error says why") from None
        found: Order = heard[0]
        return found

    def total(self, values: Tensor) -> Tensor:
        """The sum of a tensor over all processes, in each of them."""
        summed = values.contiguous()
        torch.distributed.all_reduce(summed)
        return summed

    @contextmanager
    def reads(self, layers: tuple[int, ...], query_index: Tensor) -> Iterator[None]:
        """The leader's next forward reads these layers' attention."""
        self.reading = layers, query_index
        try:
            yield
        finally:
            self.reading = (), None

    def lead(self, model: nn.Module) -> None:
        """From now on every forward of the body of `model` is one that all take part in."""
        body = decoder_body(model)
        body.register_forward_pre_hook(self._begin, with_kwargs=True)
        body.register_forward_hook(self._end)

    def _begin(self, body: nn.Module, arguments: Any, words: dict[str, Any]) -> None:
        layers, query_index = self.reading
        self.is_between = False
        ids = words["input_ids"].cpu()
        self.tell(
            Forward(
                ids,
                layers,
                None if query_index is None else query_index.cpu(),
                bool(words.get("output_hidden_states")),
            )
        )

    def _end(self, body: nn.Module, arguments: Any, output: Any) -> None:
        self.is_between = True


_team: Team | None = None


def team() -> Team | None:
    """The team that this process is of; None where it works alone."""
    return _team


@contextmanager
def joined() -> Iterator[Team]:
    """Join the processes that torchrun has started; when the leader leaves, the others are told.

    Raises:
        ConfigError: If torchrun has not started this process, or it alone.
    """
    global _team
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size < 2 or any(name not in os.environ for name in SET_BY_TORCHRUN):
        raise ConfigError(
            "--tensor-parallel: needs two processes and more, started by torchrun; write `torchrun --nproc-per-node 2 "
            "--no-python sra-data cache-teacher ... --tensor-parallel`, or use --device-map auto in one process"
        )
    if torch.cuda.is_available():
        local = int(os.environ["LOCAL_RANK"])
        if local >= torch.cuda.device_count():
            there = torch.cuda.device_count()
            raise ConfigError(
                f"--tensor-parallel: {local + 1} processes and more on a machine with {there} GPUs; give torchrun no "
                "more --nproc-per-node than that"
            )
        torch.cuda.set_device(local)
        torch.distributed.init_process_group("cpu:gloo,cuda:nccl")
    else:
        torch.distributed.init_process_group("gloo")
    _team = found = Team(torch.distributed.get_rank(), size)
    is_well = False
    try:
        yield found
        is_well = True
    finally:
        _team = None
        if found.is_between:  # else the others are inside a forward that this process has left, and end with it
            with suppress(RuntimeError):
                if found.leads:
                    found.tell(End(is_well))
                torch.distributed.destroy_process_group()


def sharding_options(config: Any, *, who: str, trust_remote_code: bool) -> dict[str, Any]:
    """What `from_pretrained` is told, so that every process loads its share of the layers and the rest whole.

    Raises:
        ConfigError: If the installed transformers cuts models in another way.
        ModelError: If the family has no plan.
    """
    import transformers
    from transformers.distributed import configuration_utils

    kind: Any = getattr(configuration_utils, "DistributedConfig", None)
    if "tp_plan" not in getattr(kind, "__dataclass_fields__", {}):
        raise ConfigError(
            f"--tensor-parallel: transformers {transformers.__version__} cuts models in another way; run `pip install "
            "-U transformers`, or use --device-map auto"
        )
    with without_numbers():
        model = transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
    plan = dict(getattr(model, "tp_plan", None) or {})
    if not plan:
        raise ModelError(f"{who}: {type(model).__name__} has no plan for tensor parallelism; use --device-map auto")
    outer = {id(model.get_input_embeddings()), id(model.get_output_embeddings())}
    names = [name for name, module in model.named_modules() if id(module) in outer and name in plan]
    return {"distributed_config": kind(tp_plan=dict.fromkeys(names, WHOLE) or "auto")}
