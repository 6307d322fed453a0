"""What a configuration declares, held against what its checkpoint stores, before a byte of the model is allocated.

A checkpoint's headers say how many tensors and bytes there are; a configuration may say anything. The model is built
on the meta device, where tensors have shapes and no memory, and the building is stopped at the parameter with which it
outgrows its checkpoint: a million layers are refused as soon as a table of 10^12 ids is. What is let through is judged
by names and shapes once it is loaded (checkpoint.py).

Headers are read by safetensors' own reader: it believes no size that the file does not have.
"""

from __future__ import annotations

import copy
import math
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import nn
from torch.nn.modules import module as registration

from sra_data.errors import ModelError, SRAError, one_line
from sra_data.model_files import (
    ADAPTER_CONFIG,
    CONFIG,
    USE_ANOTHER,
    WEIGHTS_NAME,
    find_file,
    is_folder,
    is_weights_name,
    read_object,
)
from sra_data.models.devices import without_numbers

WHOLE, PICKLED = "model.safetensors", "pytorch_model.bin"
ADAPTER_WEIGHTS = ("adapter_model.safetensors", "adapter_model.bin")
NUMBERS_PER_BYTE = 2  # of a checkpoint: an 8-bit one has 1; its head may be missing, which is said by name
QUANTIZED_NUMBERS_PER_BYTE = 16  # codes of a bit and less
FEW_NUMBERS, FEW_MODULES = 1 << 20, 1_000  # of any model
MOST_BUFFERS = 1 << 28  # numbers that are computed: masks, frequencies
MODULES_PER_TENSOR = 16  # activations and dropouts hold none
MOST_NEW_MODULES = 1 << 16  # of a model without a checkpoint
MOST_DECLARED = 1 << 43  # numbers of a model of which nothing but its size is wanted
LARGEST_RANK = 1 << 16
LARGEST_SIZES = {"num_hidden_layers": 100_000, "hidden_size": 1 << 20, "vocab_size": (1 << 31) - 1}
LONGEST_REASON = 200
WHOLE_NUMBERS = frozenset({"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"})  # as their headers say


@dataclass(frozen=True)
class Stored:
    """What a checkpoint's files hold.

    Attributes:
        num_tensors: None where only the loading tells.
        num_bytes: of all files.
        codes: a weight that is kept in whole numbers, as a quantization does; None where there is none.
    """

    num_tensors: int | None
    num_bytes: int
    codes: str | None = None


@contextmanager
def in_one_line(refusal: Callable[[Exception], str]) -> Iterator[None]:
    """Whatever a library raises over a stranger's files, as the one line that `refusal` makes of it.

    Raises:
        ModelError: In place of any exception that is not an `SRAError`.
    """
    try:
        yield
    except SRAError:
        raise
    except Exception as error:  # transformers raises whatever a value leads to, its checks a class of their own
        raise ModelError(refusal(error)) from error


def reason_of(error: Exception) -> str:
    """The gist of a library's error: its first line, and the next where that one only announces it."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    reason = " ".join(lines[:2] if lines and lines[0].endswith(":") else lines[:1]) or type(error).__name__
    return reason[:LONGEST_REASON].rstrip(".")


def stored_in(name: str, revision: str | None, *, who: str, allow_pickle: bool = False) -> Stored | None:
    """What the weights of a folder or Hub id hold; None where there are none, which whoever loads them says.

    Raises:
        ModelError: If a file is no whole safetensors file, or the index names one outside its folder.
    """
    named = _weights_named_in_config(name, revision, who=who)
    kinds = [named or WHOLE, *([PICKLED] if allow_pickle and named is None else [])]
    for whole in kinds:
        path = find_file(name, whole, revision)
        if path is not None:
            return _sum([path], who=who)
        index = find_file(name, f"{whole}.index.json", revision)
        if index is not None:
            return _sum(_parts(index, name, revision, who=who, allow_pickle=whole == PICKLED), who=who)
    return None


def _weights_named_in_config(name: str, revision: str | None, *, who: str) -> str | None:
    path = find_file(name, CONFIG, revision)
    found = None if path is None else read_object(path, who=who).get(WEIGHTS_NAME)
    return None if found is None else str(found)


def _parts(index: Path, name: str, revision: str | None, *, who: str, allow_pickle: bool) -> list[Path]:
    """The files that an index names."""
    places = read_object(index, who=who).get("weight_map")
    names = sorted(set(map(str, places.values()))) if isinstance(places, dict) else []
    wrong = next((one for one in names if not is_weights_name(one, allow_pickle=allow_pickle)), None)
    if not names or wrong is not None:
        said = "names no file" if wrong is None else f"names {ascii(wrong)[:80]}, no file of weights in its folder"
        raise ModelError(f"{who}: {index.name} {said}; use a checkpoint as `save_pretrained` writes it")
    found = []
    for one in names:
        path = find_file(name, one, revision)
        if path is None:
            raise ModelError(f"{who}: {index.name} names {one}, which is missing; download the checkpoint again")
        found.append(path)
    return found


def _sum(paths: list[Path], *, who: str) -> Stored:
    num_tensors: int | None = 0
    codes: str | None = None
    for path in paths:
        if path.suffix == ".safetensors":
            found = tensors_in(path, who=who)
            num_tensors = None if num_tensors is None else num_tensors + len(found)
            whole = (name for name, (_, dtype) in found.items() if name.endswith(".weight") and dtype in WHOLE_NUMBERS)
            codes = codes or next(whole, None)
        else:
            num_tensors = None
    return Stored(num_tensors, sum(path.stat().st_size for path in paths), codes)


def shapes_in(path: Path, *, who: str) -> dict[str, list[int]]:
    """Shapes of a safetensors file's tensors, by name; raises as `tensors_in` does."""
    return {name: shape for name, (shape, _) in tensors_in(path, who=who).items()}


def tensors_in(path: Path, *, who: str) -> dict[str, tuple[list[int], str]]:
    """Shapes and dtypes of a safetensors file's tensors, by name; nothing but its header is read.

    Raises:
        ModelError: If it is cut, or its header is none.
    """
    try:
        with safe_open(path, framework="pt") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118
            return {name: (one.get_shape(), one.get_dtype()) for name, one in slices.items()}
    except (OSError, SafetensorError) as error:
        reason = one_line(error, LONGEST_REASON)
        raise ModelError(
            f"{who}: cannot be loaded ({path.name}: {reason}); download or save the checkpoint again"
        ) from None


def refuse_sizes(config: Any, *, who: str) -> None:
    """Refuse a configuration whose sizes are no sizes: a model of no layers opens, and teaches nothing; what is planned
    by arithmetic alone (`sra-data estimate`) believes them.

    Raises:
        ModelError: Naming the size.
    """
    decoder = config.get_text_config(decoder=True)
    for size, most in LARGEST_SIZES.items():
        found = getattr(decoder, size, None)
        if found is not None and (not isinstance(found, int) or isinstance(found, bool) or not 1 <= found <= most):
            raise ModelError(f"{who}: its {CONFIG} says {size} {ascii(found)[:40]}, not 1 to {most}; {USE_ANOTHER}")


def refuse_beyond(config: Any, stored: Stored | None, *, who: str, trust_remote_code: bool) -> None:
    """Refuse a configuration of a model that is larger than its checkpoint or, without one, than this machine.

    Args:
        config: of the model.
        stored: what its checkpoint holds; None for new weights.
        who: "teacher X" or "student X", for the message.
        trust_remote_code: whether code that comes with the model builds it.

    Raises:
        ModelError: With the size, as soon as it is known; or if no model can be built of it at all.
    """
    refuse_sizes(config, who=who)
    if stored is not None and stored.codes is not None and getattr(config, "quantization_config", None) is None:
        raise ModelError(
            f"{who}: its checkpoint keeps {stored.codes} in whole numbers, its {CONFIG} names no quantization that "
            f"says what they mean; use the {CONFIG} that belongs to the checkpoint"
        )
    without_memory(config, _Limit.of(config, stored, who=who), trust_remote_code=trust_remote_code)


def declared_model(config: Any, *, who: str, trust_remote_code: bool) -> nn.Module:
    """The model that a configuration declares, on the meta device: names and shapes, of any size, without memory.

    Raises:
        ModelError: If its sizes are no sizes, or no model can be built of it.
    """
    refuse_sizes(config, who=who)
    limit = _Limit(who, None, most_numbers=MOST_DECLARED, most_modules=MOST_NEW_MODULES)
    model: Any = without_memory(config, limit, trust_remote_code=trust_remote_code)
    model.tie_weights()  # which is left out where weights are not initialised
    found: nn.Module = model
    return found


def without_memory(config: Any, limit: _Limit, *, trust_remote_code: bool) -> Any:
    """Build a configuration's model on the meta device, as far as `limit` allows; raises as `refuse_beyond` does."""
    from transformers import AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    who = limit.who
    with (
        in_one_line(lambda error: f"{who}: no model can be built of its {CONFIG} ({reason_of(error)}); {USE_ANOTHER}"),
        limit.watching(),
        warnings.catch_warnings(),
        without_numbers(),
        no_init_weights(),
    ):
        warnings.simplefilter("ignore")  # of tensors without elements, say
        # No forward runs: eager is there whatever the configuration asks for.
        return AutoModelForCausalLM.from_config(
            copy.deepcopy(config), trust_remote_code=trust_remote_code, attn_implementation="eager"
        )


@dataclass
class _Limit:
    """How large a model may become, and how large it is so far."""

    who: str
    stored: Stored | None
    most_numbers: int
    most_modules: float
    numbers: int = 0
    buffers: int = 0
    modules: int = 0

    @classmethod
    def of(cls, config: Any, stored: Stored | None, *, who: str) -> _Limit:
        if stored is None:
            memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
            return cls(who, None, memory // 2, most_modules=MOST_NEW_MODULES)
        is_quantized = getattr(config, "quantization_config", None) is not None
        per_byte = QUANTIZED_NUMBERS_PER_BYTE if is_quantized else NUMBERS_PER_BYTE
        modules = math.inf if stored.num_tensors is None else MODULES_PER_TENSOR * stored.num_tensors + FEW_MODULES
        return cls(who, stored, per_byte * stored.num_bytes + FEW_NUMBERS, modules)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what modules are given while they are built."""
        handles = [
            registration.register_module_parameter_registration_hook(self._on_parameter),
            registration.register_module_buffer_registration_hook(self._on_buffer),
            registration.register_module_module_registration_hook(self._on_module),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _on_parameter(self, module: nn.Module, name: str, tensor: Any) -> None:
        self.numbers += 0 if tensor is None else tensor.numel()
        if self.numbers > self.most_numbers:
            self._refuse(f"{self.numbers:,} parameters and more")

    def _on_buffer(self, module: nn.Module, name: str, tensor: Any) -> None:
        self.buffers += 0 if tensor is None else tensor.numel()
        if self.buffers > self.most_numbers + MOST_BUFFERS:
            self._refuse(f"buffers of {self.buffers:,} numbers and more")

    def _on_module(self, module: nn.Module, name: str, child: Any) -> None:
        self.modules += 1
        if self.modules > self.most_modules:
            self._refuse(f"{self.modules:,} modules and more")

    def _refuse(self, what: str) -> None:
        if self.stored is None:
            raise ModelError(f"{self.who}: its {CONFIG} declares {what}, too many for this machine; use a smaller one")
        tensors = "" if self.stored.num_tensors is None else f"{self.stored.num_tensors:,} tensors in "
        raise ModelError(
            f"{self.who}: its {CONFIG} declares {what}, its checkpoint has {tensors}{self.stored.num_bytes:,} bytes; "
            f"use the {CONFIG} that belongs to the checkpoint"
        )


def refuse_adapter_files(folder: Path, *, who: str, allow_pickle: bool = False) -> None:
    """Refuse an adapter that is a pickle, or whose configuration asks for more than its file holds.

    Args:
        folder: where it lies.
        who: "--adapter X" or "student X", for the message.
        allow_pickle: whether weights that are no safetensors are read.

    Raises:
        ModelError: Naming what it is.
    """
    weights = folder / ADAPTER_WEIGHTS[0]
    if not weights.is_file():
        if (folder / ADAPTER_WEIGHTS[1]).is_file() and not allow_pickle:
            raise ModelError(
                f"{who}: {ADAPTER_WEIGHTS[1]} is a pickle, which may hold code; save it as safetensors, or read a "
                "teacher's with --allow-pickle"
            )
        return
    largest = max((max(shape, default=0) for shape in shapes_in(weights, who=who).values()), default=0)
    asked = _numbers(read_object(folder / ADAPTER_CONFIG, who=who) if (folder / ADAPTER_CONFIG).is_file() else {})
    beyond = next(((key, value) for key, value in asked if not abs(value) <= max(largest, LARGEST_RANK)), None)
    if beyond is not None:
        raise ModelError(
            f"{who}: {ADAPTER_CONFIG} says {beyond[0]} {beyond[1]}, its weights are at most {largest} wide; save the "
            "adapter again"
        )


def _numbers(found: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Every number in an adapter's configuration, and those of the tables in it, by its name."""
    for key, value in found.items():
        inner = list(value.values()) if isinstance(value, dict) else [value]
        yield from ((key, one) for one in inner if isinstance(one, int | float) and not isinstance(one, bool))


def base_of_adapter(name: str, revision: str | None, *, who: str, allow_pickle: bool = False) -> str:
    """The model that is opened for a name: that of its adapter, where the folder is nothing but one.

    Raises:
        ModelError: If the adapter is refused, or names no model.
    """
    path = find_file(name, ADAPTER_CONFIG, revision)
    if path is None:
        return name
    refuse_adapter_files(path.parent, who=who, allow_pickle=allow_pickle)
    if is_folder(name) and (Path(name) / CONFIG).is_file():
        return name
    base = read_object(path, who=who).get("base_model_name_or_path")
    if not isinstance(base, str) or not base:
        raise ModelError(f"{who}: an adapter that names no model; give the model, or merge the adapter into it")
    return base
