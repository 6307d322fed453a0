"""What a teacher is asked for: which model and how it is opened, and what is kept of what it says.

Both are declared here once: the command line, the units of work, the fingerprint of the pages, and whoever asks the
teacher again later read these fields. A new option is one field here, and its use in loading.py or capture.py.

Nothing heavy is imported, so that `--help` answers at once.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from sra_data.errors import ConfigError, ModelError
from sra_data.options import option, recorded

Dtype = Literal["bf16", "fp16", "fp32"]
Quantization = Literal["4bit", "8bit"]
DeviceMap = Literal["auto"]
HiddenDtype = Literal["bf16", "fp16", "fp32", "int8", "none"]
Granularity = Literal["token", "span"]


@dataclass(frozen=True)
class TeacherSpec:
    """Which model, and how it is opened.

    Attributes:
        name: Hub id (with `@revision`) or folder; None for the only one that the shards were aligned for.
        revision: Hub branch, tag or commit, where it is not part of the name.
        adapter: Hub id (with `@revision`) or folder of a LoRA adapter; merged into the weights unless those are
            quantized.
        dtype: of its numbers; bf16 on GPUs and fp32 on CPUs where None.
        device: torch device; the first GPU where there is one, where None.
        device_map: "auto" spreads its layers over all GPUs, then memory, then the disk (accelerate); one device where
            None.
        tensor_parallel: cut its layers over the processes that torchrun has started.
        quantization: "4bit" or "8bit", through bitsandbytes.
        trust_remote_code: run code that comes with the model or its tokenizer.
        allow_pickle: read .bin weights too.
    """

    name: str | None = option(
        None,
        "Hub id (with @revision) or folder (default: the only one the shards were aligned for).",
        name="teacher",
        is_recorded=False,  # its fingerprint is
    )
    revision: str | None = None
    adapter: str | None = option(None, "LoRA adapter to put on the teacher (peft).", is_recorded=False)
    dtype: Dtype | None = option(None, "The teacher's (default: bf16 on GPUs, else fp32).")
    device: str | None = option(None, "cuda, cuda:1, cpu (default: a GPU where there is one).", is_recorded=False)
    device_map: DeviceMap | None = option(
        None, "auto: spread its layers over all GPUs, then memory (default: one device).", is_recorded=False
    )
    tensor_parallel: bool = option(
        False, "Cut each of its layers over the processes that torchrun started.", is_recorded=False
    )
    quantization: Quantization | None = option(None, "Quantize the teacher (bitsandbytes).")
    trust_remote_code: bool = option(False, "Run code that comes with the teacher.", is_recorded=False)
    allow_pickle: bool = option(False, "Read weights that are not safetensors.", is_recorded=False)


def check_teacher(teacher: TeacherSpec) -> None:
    """Refuse two places for one teacher, before anything is loaded.

    Raises:
        ConfigError: Naming the two options.
    """
    if teacher.tensor_parallel:
        others = {name: getattr(teacher, name) for name in ("device", "device_map", "quantization", "adapter")}
        for name, value in others.items():
            if value is not None:
                raise ConfigError(
                    f"--{name.replace('_', '-')} {value} with --tensor-parallel: each process has its own device and "
                    "holds a part of plain weights; leave one of them out"
                )
    if teacher.device_map is not None and teacher.device is not None:
        raise ConfigError(
            f"--device {teacher.device} with --device-map {teacher.device_map}: a map takes every device it may see; "
            "leave --device out, or name the devices in CUDA_VISIBLE_DEVICES"
        )


# What pages know of their teacher themselves: whoever asks it again has no say in these.
KNOWN_BY_PAGES = ("teacher", "adapter", *recorded(TeacherSpec()))


@dataclass(frozen=True)
class CaptureOptions:
    """What to keep of a teacher's forward.

    Attributes:
        layers: hidden states to keep: numbers 1..L (L is the last, after the final norm), or "last".
        hidden_dtype: "bf16", "fp16", "fp32", "int8", or "none" to keep no hidden states.
        attention: whether to keep the last query's attention at `layers` (state-space teachers have none).
        top_k: ids kept per position, 0 for none.
        temperatures: one log tail each, where top_k > 0.
        granularity: "token" for one row per position, "span" for one per span of one student's alignment: its centre of
            mass, as its attention its tokens' mass, and the head's distribution at the centre; no next token's
            log-probability.
        top_k_dtype: "fp16" or "fp32".
        logits_chunk_bytes: float32 logits held at a time; what suits the device where None.
    """

    layers: tuple[int | str, ...] = option(("last",), "Layers to keep: last, or numbers 1..L with commas.")
    hidden_dtype: HiddenDtype = option("bf16", "How hidden states are stored; none keeps none.")
    attention: bool = option(True, "Keep the last query's row.")
    top_k: int = option(64, "Log-probabilities kept a position; 0 for none.")
    temperatures: tuple[float, ...] = option((1.0, 2.0), "One exact log tail each, with commas.")
    granularity: Granularity = option("token", "span: pool one alignment's spans before storing.")
    top_k_dtype: Literal["fp16", "fp32"] = "fp16"
    logits_chunk_bytes: int | None = None

    @property
    def by_span(self) -> bool:
        """Whether a row is a span."""
        return self.granularity == "span"

    @property
    def keeps_states(self) -> bool:
        """Whether hidden states are kept."""
        return self.hidden_dtype != "none"

    @property
    def layer_numbers(self) -> tuple[int, ...]:
        """The layers, once they are `resolved`."""
        numbers = tuple(layer for layer in self.layers if isinstance(layer, int))
        assert len(numbers) == len(self.layers), f"layers {self.layers} of no known model"
        return numbers

    def resolved(self, num_layers: int) -> CaptureOptions:
        """The same for a teacher with that many layers: numbers in order, and no temperature that nothing is kept at.

        Raises:
            ConfigError: If a layer is neither `last` nor a number.
            ModelError: If the teacher has no such layer.
        """
        layers = sorted({_layer_number(layer, num_layers) for layer in self.layers})
        return replace(self, layers=tuple(layers), temperatures=self.temperatures if self.top_k else ())


def _layer_number(layer: str | int, num_layers: int) -> int:
    try:
        number = num_layers if layer == "last" else int(layer)
    except ValueError:
        raise ConfigError(f"--layers {layer}: neither `last` nor a number; write, say, 1,last") from None
    if not 1 <= number <= num_layers:
        raise ModelError(f"--layers {layer}: the teacher has layers 1 to {num_layers}; choose one of them or `last`")
    return number


def check_capture(capture: CaptureOptions) -> None:
    """Refuse what cannot be kept of any teacher.

    Raises:
        ConfigError: Naming the option, its value and what it may be.
    """
    if capture.top_k < 0:
        raise ConfigError(f"--top-k {capture.top_k}: must be at least 0")
    if not all(0 < temperature < float("inf") for temperature in capture.temperatures):
        raise ConfigError(f"--temperatures {list(capture.temperatures)}: each must be above 0")
    if capture.by_span and not capture.attention:
        raise ConfigError("--granularity span: a span's centre of mass needs attention; leave --no-attention out")
    if capture.by_span and not capture.keeps_states:
        raise ConfigError("--granularity span: --hidden-dtype none leaves no centre of mass to keep; choose bf16")
    if not capture.layers:
        raise ConfigError("--layers: none given; give `last` or layer numbers")
