"""What `cache-teacher` may be asked, and what is refused before anything is loaded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sra_data.errors import ConfigError, ModelError
from sra_data.shards.codecs import HIDDEN_DTYPES
from sra_data.shards.store import FolderReader, ShardSet, Unit
from sra_data.teacher.capture import CaptureOptions


@dataclass(frozen=True)
class CacheOptions:
    """What `cache-teacher` is asked to do.

    Attributes:
        shards: folder that `align` wrote.
        teacher: Hub id (with `@revision`) or folder; the manifest's where None.
        revision: Hub revision of the teacher.
        adapter: LoRA adapter to put on it.
        quantization: "4bit" or "8bit".
        layers: "last" or layer numbers 1..L.
        attention: whether to keep the last query's attention (state-space teachers have none).
        hidden_dtype: bf16, fp16, fp32, int8 or none.
        top_k: ids kept per position, 0 for none.
        temperatures: one log tail each.
        logits: "top_k", or "sampled" for random samples in its place.
        num_samples: ids sampled per position.
        seed: of the samples.
        granularity: "token", or "span" to pool the spans of one student's alignment before they are stored.
        student: whose alignment, by its name (or the start of it) or the student's; the only one where None.
        batch_tokens: padded tokens of a batch; found by trying where None.
        dtype: the teacher's; bf16 on GPUs and fp32 on CPUs where None.
        device: torch device; a GPU where there is one.
        num_workers: processes; what is written does not depend on it.
        units: "a:b", only these units of the plan.
        max_failed: examples with NaN or infinite activations that are let through.
        trust_remote_code: run code that comes with the model.
        allow_pickle: read .bin weights.
    """

    shards: str = "shards"
    teacher: str | None = None
    revision: str | None = None
    adapter: str | None = None
    quantization: str | None = None
    layers: tuple[str | int, ...] = ("last",)
    attention: bool = True
    hidden_dtype: str = "bf16"
    top_k: int = 64
    temperatures: tuple[float, ...] = (1.0, 2.0)
    logits: str = "top_k"
    num_samples: int = 12
    seed: int = 0
    granularity: str = "token"
    student: str | None = None
    batch_tokens: int | None = None
    dtype: str | None = None
    device: str | None = None
    num_workers: int = 1
    units: str | None = None
    max_failed: int = 0
    trust_remote_code: bool = False
    allow_pickle: bool = False


def check_options(options: CacheOptions) -> None:
    """Refuse options that cannot be carried out, before anything is loaded.

    Raises:
        ConfigError: Naming the option, its value and what it may be.
    """
    choices = {
        "hidden_dtype": (*HIDDEN_DTYPES, "none"),
        "logits": ("top_k", "sampled"),
        "granularity": ("token", "span"),
    }
    for name, allowed in choices.items():
        if getattr(options, name) not in allowed:
            flag = name.replace("_", "-")
            raise ConfigError(f"--{flag} {getattr(options, name)}: unknown; choose one of {', '.join(allowed)}")
    for name in ("top_k", "max_failed"):
        if getattr(options, name) < 0:
            raise ConfigError(f"--{name.replace('_', '-')} {getattr(options, name)}: must be at least 0")
    if options.batch_tokens is not None and options.batch_tokens < 1:
        raise ConfigError(f"--batch-tokens {options.batch_tokens}: must be at least 1")
    if options.logits == "sampled" and options.num_samples < 1:
        raise ConfigError(f"--num-samples {options.num_samples}: must be at least 1")
    if not all(0 < temperature < float("inf") for temperature in options.temperatures):
        raise ConfigError(f"--temperatures {list(options.temperatures)}: each must be above 0")
    if options.granularity == "span" and not options.attention:
        raise ConfigError("--granularity span: a span's centre of mass needs attention; leave --no-attention out")
    if options.granularity == "span" and options.hidden_dtype == "none":
        raise ConfigError("--granularity span: --hidden-dtype none leaves no centre of mass to keep; choose bf16")
    if options.student is not None and options.granularity != "span":
        raise ConfigError(
            f"--student {options.student}: pages by token serve every student; leave it out, or use --granularity span"
        )
    if not options.layers:
        raise ConfigError("--layers: none given; give `last` or layer numbers")


def capture_options(options: CacheOptions, num_layers: int) -> CaptureOptions:
    """What to keep of a teacher with that many layers."""
    layers = sorted({parse_layer(layer, num_layers) for layer in options.layers})
    is_sampled = options.logits == "sampled"
    return CaptureOptions(
        layers=tuple(layers),
        hidden_dtype=options.hidden_dtype,
        attention=options.attention,
        top_k=0 if is_sampled else options.top_k,
        temperatures=tuple(options.temperatures),
        num_samples=options.num_samples if is_sampled else 0,
        seed=options.seed,
        granularity=options.granularity,
    )


def choose_alignment(shards: Path, student: str | None) -> FolderReader:
    """The alignment whose spans are pooled.

    Args:
        shards: the folder.
        student: an alignment's name or the start of it, or the student it was made for; None for the only one.

    Raises:
        ShardError: If there is none, or several fit.
    """
    opened = ShardSet.open(shards, need_teacher=False)
    if student is not None:
        name = str(Path(student).resolve()) if Path(student).is_dir() else student
        sections = {known: opened.manifest.section(f"alignments/{known}") or {} for known in opened.alignments}
        fitting = [known for known, facts in sections.items() if facts.get("student", {}).get("name") == name]
        student = fitting[0] if len(fitting) == 1 else student
    return opened.alignment(student)


def parse_layer(layer: str | int, num_layers: int) -> int:
    """`last` or a number 1..L.

    Raises:
        ModelError: If the teacher has no such layer.
    """
    try:
        number = num_layers if layer == "last" else int(layer)
    except ValueError:
        raise ConfigError(f"--layers {layer}: neither `last` nor a number") from None
    if not 1 <= number <= num_layers:
        raise ModelError(f"--layers {layer}: the teacher has layers 1 to {num_layers}; choose one of them or `last`")
    return number


def choose_units(missing: list[Unit], units: str | None, num_units: int) -> list[Unit]:
    """The missing units within "a:b" of the plan (all where None).

    Raises:
        ConfigError: If it is no range of the plan.
    """
    if units is None:
        return missing
    start, colon, stop = units.partition(":")
    if not colon or not start.isdigit() or not stop.isdigit() or not int(start) < int(stop) <= num_units:
        raise ConfigError(f"--units {units}: give a:b with a < b, within the plan's 0:{num_units}")
    return [unit for unit in missing if int(start) <= unit.part < int(stop)]
