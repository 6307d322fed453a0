"""The teacher of a small world as both tools capture it, and one call of `import`."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from sra_data.stages.imports.options import ImportOptions
from sra_data.stages.imports.stage import ImportSummary, import_capture
from sra_data.teacher.spec import TeacherSpec
from sra_data.terminal import Reporter
from tests.unit.captures.writers import EXACT, distillkit_row, write_distillkit, write_speculators
from tests.unit.stages.cache.worlds import NUM_ROWS, World, side_row

SKIPPED = 3
LAYERS = (1, 3)
PADDING = 0


def model_of(world: World) -> Any:
    """The teacher, alive."""
    return AutoModelForCausalLM.from_pretrained(world.teacher, dtype=torch.float32).eval()


def texts_of(numbers: Iterable[int] = range(NUM_ROWS)) -> list[list[int]]:
    """Ids of the side's examples, in another order than theirs."""
    return [side_row(number).ids.tolist() for number in reversed(list(numbers)) if number != SKIPPED]


def capture_distillkit(
    world: World, folder: Path, texts: list[list[int]] | None = None, form: dict[str, Any] | None = None
) -> Path:
    """DistillKit's capture of the teacher: every text with a padding token behind it, as its sampler puts one."""
    form, model = form or EXACT, model_of(world)
    rows = [distillkit_row(model, [*ids, PADDING], form) for ids in texts or texts_of()]
    return write_distillkit(folder, rows, form)


def capture_speculators(world: World, folder: Path, texts: list[list[int]] | None = None, **options: Any) -> Path:
    """Speculators' capture of the teacher."""
    return write_speculators(folder, model_of(world), texts or texts_of(), LAYERS, **options)


def import_it(world: World, format: str, folder: Path, **options: Any) -> ImportSummary:
    """One call, on the CPU; of speculators with the layers of `capture_speculators`."""
    if format == "speculators":
        options = {"captured_layers": LAYERS, "hidden_dtype": "fp32", **options}
    asked = ImportOptions(str(world.shards), TeacherSpec(device="cpu"), **options)
    return import_capture(format, str(folder), asked, Reporter())
