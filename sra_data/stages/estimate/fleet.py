"""Hours and money of `cache-teacher` on many accelerators: arithmetic, every assumption of it a number of the summary.

A forward is 2 operations a weight and token, and twice a sequence's length squared for its attention; the head is
applied where something is kept. A teacher that one accelerator has no room for is held by the smallest power of two of
them, in parallel; as many teachers work at once as there are accelerators and units for. Each process runs a unit
through its teacher and then writes it, one after the other, as `cache/unit.py` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from sra_data.errors import ConfigError
from sra_data.models.declared import declared_model
from sra_data.models.decoder import text_config, unwrap
from sra_data.models.output_head import OutputHead
from sra_data.stages.cache.examples import ExampleReader
from sra_data.stages.cache.options import CacheOptions
from sra_data.stages.cache.size import BYTES_OF_DTYPE
from sra_data.stages.estimate.accelerators import Accelerator, accelerator_of
from sra_data.stages.estimate.options import UTILISATION, WRITE_RATE, EstimateOptions
from sra_data.stages.estimate.summary import Fleet, Sample
from sra_data.terminal import bytes_in_words

ROOM_FOR_WEIGHTS = 0.8  # of an accelerator's memory; activations and logits take the rest
BATCH_TOKENS = 8192  # of a batch on an accelerator, where it was not told: how often all weights are read
BYTES_OF_QUANTIZED = {"4bit": 0.5, "8bit": 1.0}
GIGA, TERA = 1e9, 1e12


@dataclass(frozen=True)
class TeacherSize:
    """What a teacher's forward costs.

    Attributes:
        parameters: all; `read` those that a batch reads, the table of input embeddings left out unless it is the head.
        body: that multiply a token: of a mixture's experts those that are active.
        head: of the output head.
        attention: of all layers, width of the heads together.
    """

    parameters: int
    read: int
    body: float
    head: int
    attention: int

    @classmethod
    def of(cls, model: nn.Module) -> TeacherSize:
        """Of a model, which may stand on the meta device."""
        config, causal, head = text_config(model), unwrap(model), OutputHead.from_model(model).weight
        table = causal.get_input_embeddings().weight
        is_tied = causal.get_output_embeddings().weight is table
        every = {id(one): (name, one.numel()) for name, one in model.named_parameters()}
        parameters = sum(count for _, count in every.values())
        read = parameters - (0 if is_tied else table.numel())
        experts = sum(count for name, count in every.values() if ".experts." in name)
        body = read - head.numel() - experts * (1 - _share_of_experts(config))
        heads = getattr(config, "num_attention_heads", 0) or 0
        width = heads * (getattr(config, "head_dim", None) or config.hidden_size // max(heads, 1))
        return cls(parameters, read, body, head.numel(), width * config.num_hidden_layers)

    def operations(self, examples: ExampleReader, options: CacheOptions) -> float:
        """Of one forward of these examples."""
        lengths = examples.num_tokens.astype(np.float64)
        positions = examples.num_rows.sum() if options.capture.by_span else examples.side.index.num_positions.sum()
        says = options.capture.top_k > 0 or not options.capture.by_span
        return float(
            2 * self.body * lengths.sum()
            + 2 * self.attention * np.square(lengths).sum()
            + 2 * self.head * float(positions) * says
        )


def _share_of_experts(config: Any) -> float:
    """Of a mixture's experts, those that work for a token; 1 where there are none."""
    names = ("num_local_experts", "num_experts", "n_routed_experts")
    every = next((getattr(config, name) for name in names if getattr(config, name, None)), None)
    active = next(
        (getattr(config, name) for name in ("num_experts_per_tok", "top_k") if getattr(config, name, None)), 0
    )
    return active / every if every and active else 1.0


@dataclass(frozen=True)
class Load:
    """What is to be done in all.

    Attributes:
        num_tokens: read; num_units: of the plan.
        num_bytes: of the whole folder; bytes_of_parts those of its parts.
        scale: how many times the folder's examples.
    """

    num_tokens: int
    num_units: int
    num_bytes: int
    bytes_of_parts: int
    scale: float


def planned_fleet(
    options: EstimateOptions, config: Any, examples: ExampleReader, load: Load, sample: Sample | None, measured: float
) -> Fleet | None:
    """Hours of the accelerators asked for; None where none were.

    Args:
        options: of the command.
        config: the teacher's.
        examples: of the folder.
        load: what they come to.
        sample: what was timed; None without.
        measured: seconds of one machine like this one, where something was timed.

    Raises:
        ConfigError: If so many cannot hold one teacher.
        ModelError: If no model can be built of the configuration.
    """
    if not options.is_planned:
        return None
    gpus = options.gpus or 1
    if options.gpu is None:
        return _like_this_one(options, load, gpus, measured)
    kind, spec = accelerator_of(options.gpu), options.cache.teacher
    who = f"teacher {spec.name or config.model_type}"
    size = TeacherSize.of(declared_model(config, who=who, trust_remote_code=spec.trust_remote_code))
    each = BYTES_OF_QUANTIZED.get(spec.quantization or "") or BYTES_OF_DTYPE[spec.dtype or "bf16"]
    apiece = accelerators_for(size.parameters * each, kind, gpus)
    teachers = max(1, min(gpus // apiece, load.num_units))
    utilisation = options.utilisation or UTILISATION
    write_rate = options.write_rate or _written_a_second(sample) or WRITE_RATE
    operations = load.scale * size.operations(examples, options.cache)
    batches = load.num_tokens / (options.cache.batch_tokens or BATCH_TOKENS)
    forward = max(
        operations / (kind.teraflops * TERA * utilisation), batches * size.read * each / (kind.bandwidth * GIGA)
    )
    forward, write = forward / apiece / teachers, load.bytes_of_parts / (write_rate * GIGA) / teachers
    rounds = math.ceil(load.num_units / teachers) / (load.num_units / teachers)
    return _fleet(
        options,
        load,
        (forward + write) * rounds,
        model=kind.model,
        gpus=gpus,
        gpus_per_teacher=apiece,
        teachers=teachers,
        parameters=size.parameters,
        bytes_of_weights=round(size.parameters * each),
        operations=operations,
        teraflops=kind.teraflops,
        utilisation=utilisation,
        forward_hours=forward / 3600,
        write_hours=write / 3600,
        write_rate=write_rate,
    )


def accelerators_for(bytes_of_weights: float, kind: Accelerator, gpus: int) -> int:
    """How many hold one teacher: the smallest power of two that has room for its weights.

    Raises:
        ConfigError: If there are fewer.
    """
    room = ROOM_FOR_WEIGHTS * kind.gigabytes * GIGA
    needed = 1 << max(0, math.ceil(math.log2(max(bytes_of_weights / room, 1))))
    if needed > gpus:
        raise ConfigError(
            f"--gpus {gpus}: the teacher's weights are {bytes_in_words(bytes_of_weights)}, one {kind.name} has room "
            f"for {bytes_in_words(room)} of them: give {needed} or more, a --gpu with more memory, or --quantization"
        )
    return needed


def _like_this_one(options: EstimateOptions, load: Load, gpus: int, measured: float) -> Fleet:
    """As many machines like this one, each as fast as was measured."""
    teachers = max(1, min(gpus, load.num_units))
    rounds = math.ceil(load.num_units / teachers)
    return _fleet(options, load, measured * rounds / max(load.num_units, 1), gpus=gpus, teachers=teachers)


def _fleet(options: EstimateOptions, load: Load, seconds: float, **facts: Any) -> Fleet:
    """What follows from the seconds that all work."""
    stored = load.num_bytes / (options.store_rate * GIGA) if options.store_rate else 0.0
    hours = max(seconds, stored) / 3600
    return Fleet(
        hours=hours,
        gpu_hours=hours * facts["gpus"],
        cost=None if options.price is None else hours * facts["gpus"] * options.price,
        price=options.price,
        store_rate=options.store_rate,
        store_needed=load.num_bytes / max(seconds, 1e-9) / GIGA,
        **facts,
    )


def _written_a_second(sample: Sample | None) -> float | None:
    """GB, as timed."""
    if sample is None or sample.write_seconds <= 0:
        return None
    return sample.num_positions * sample.bytes_per_position / sample.write_seconds / GIGA
