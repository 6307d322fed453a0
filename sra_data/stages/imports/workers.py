"""One unit of `import`: what a capture says about a part of a side becomes a part of a teacher's pages.

Of a DistillKit capture the top k of each position is taken as it is stored. Of a speculators capture hidden states are:
the last layer goes through the teacher's own final norm, and from there on they are what a forward would have given, so
`TeacherCapture` makes the same of them: states as they are stored, the next token's log-probability, a top k.

Examples without a captured row are failed ones: zeros stand in their place, and their names in the receipt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sra_data.captures.distillkit import DistillkitCapture, Kept
from sra_data.captures.matching import Matches
from sra_data.captures.speculators import SpeculatorsCapture
from sra_data.engines import Advance
from sra_data.errors import CaptureError
from sra_data.stages.cache.parts import PartsWorker, UnitSettings
from sra_data.stages.cache.unit import CacheWorker
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.loading import LoadedTeacher

TORCH_DTYPES = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32}


def needed_ids(example: Example) -> NDArray[np.int32]:
    """The ids that decide what is said at an example's positions: those up to the last of them."""
    return example.ids[: int(example.positions[-1]) + 1]


def refuse_failed_import(failed: Sequence[str], max_missing: int) -> None:
    """Stop where too many examples have nothing that can be kept.

    Raises:
        CaptureError: Naming the first of them.
    """
    if len(failed) > max_missing:
        raise CaptureError(
            f"example {failed[0]}: not in the capture, or its numbers are NaN or infinite ({len(failed)} such "
            f"examples, --max-missing {max_missing}); capture them too, or allow them with --max-missing {len(failed)}"
        )


class TopKWorker(PartsWorker):
    """Makes parts of what a DistillKit capture holds."""

    def __init__(
        self, settings: UnitSettings, capture: DistillkitCapture, matches: Matches, kept: Kept, *, waits: bool
    ) -> None:
        """`kept`: the captured rows of the units that will be asked for."""
        super().__init__(settings, environment={}, waits=waits)
        self.capture = capture
        self.matches = matches
        self.kept = kept
        self._counts = {"rescaled": 0, "repeated": 0}
        self._largest = 1.0

    def said_about(self, examples: Sequence[Example], advance: Advance) -> dict[int, Captured]:
        """All examples that have positions; by number within those given."""
        self._counts, self._largest = {"rescaled": 0, "repeated": 0}, 1.0
        found: dict[int, Captured] = {}
        for number, example in enumerate(examples):
            if example.num_rows:
                row = self.matches.row_of(needed_ids(example))
                found[number] = Captured(example.id, is_finite=False) if row < 0 else self._captured(example, row)
                advance(len(example.ids))
        return found

    def _captured(self, example: Example, row: int) -> Captured:
        """What a captured row says at an example's positions."""
        refuse_others(example, self.kept.ids_of(row))
        size, where = self.settings.vocabulary_size, self.capture.where(row)
        said = self.kept.distributions_of(row, example.positions, vocabulary_size=size, where=where)
        self._counts["rescaled"] += said.num_rescaled
        self._counts["repeated"] += said.num_repeated
        self._largest = max(self._largest, said.largest_sum)
        half = np.finfo(np.float16)
        return Captured(
            example.id,
            top_k_ids=said.ids,
            top_k_values=np.maximum(said.values, half.min).astype(np.float16),
            log_tails=said.log_tails.astype(np.float32)[None],
        )

    def remarks(self) -> dict[str, Any]:
        """What did not add up in the unit that was said last."""
        return {**self._counts, "largest_sum": self._largest}

    def refuse(self, failed: Sequence[str]) -> None:
        """Stop where too many examples are missing."""
        refuse_failed_import(failed, self.settings.max_failed)


@dataclass(frozen=True)
class CapturedStates:
    """Where hidden states are taken from.

    Attributes:
        capture: the files.
        matches: which of them holds an example.
        layers: that the files hold, in their order.
        norm: the teacher's, between its last block and its head.
    """

    capture: SpeculatorsCapture
    matches: Matches
    layers: tuple[int, ...]
    norm: nn.Module

    def states(self, row: int, layer: int, positions: NDArray[Any]) -> Tensor:
        """[P, D] of one layer as it was captured."""
        found = self.capture.states_of(row, self.layers.index(layer), positions)
        dtype = TORCH_DTYPES[self.capture.dtype]
        return torch.from_numpy(found).view(dtype) if dtype == torch.bfloat16 else torch.from_numpy(found)


class StatesCapture(TeacherCapture):
    """A teacher's capture whose forward is read from files."""

    def __init__(self, source: CapturedStates, teacher: LoadedTeacher, settings: UnitSettings) -> None:
        super().__init__(teacher.model, settings.capture, settings.scales)
        self.source = source
        self._examples: Sequence[Example] = ()

    def capture(self, examples: Sequence[Example]) -> list[Captured]:
        """One batch of examples that are in the capture."""
        self._examples = examples
        return super().capture(examples)

    def _forward(
        self, ids: Tensor, query_index: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Hidden states [Q, D] of the asked layers and the last, the last behind the final norm; no attention."""
        last = len(self.blocks)
        pieces: dict[int, list[Tensor]] = {layer: [] for layer in {*self.layers, last}}
        for example in self._examples:
            row = self.source.matches.row_of(needed_ids(example))
            refuse_others(example, self.source.capture.ids_of(row))
            for layer, found in pieces.items():
                found.append(self.source.states(row, layer, example.positions))
        dtype = self.head.weight.dtype
        hidden = {layer: torch.cat(found).to(self.device, dtype) for layer, found in pieces.items()}
        hidden[last] = self.source.norm(hidden[last])
        return hidden, {}


class StatesWorker(CacheWorker):
    """Makes parts of what a speculators capture holds."""

    def __init__(self, settings: UnitSettings, teacher: LoadedTeacher, source: CapturedStates, *, waits: bool) -> None:
        self.source = source
        super().__init__(settings, teacher, waits=waits)

    def make_capture(self) -> TeacherCapture:
        """What reads the files."""
        return StatesCapture(self.source, self.teacher, self.settings)

    def said_about(self, examples: Sequence[Example], advance: Advance) -> dict[int, Captured]:
        """All examples that have positions; those without a captured row have nothing finite."""
        with_positions = [number for number, example in enumerate(examples) if example.num_rows]
        there = [n for n in with_positions if self.source.matches.row_of(needed_ids(examples[n])) >= 0]
        said = super().said_about([examples[number] for number in there], advance)
        found = {number: Captured(examples[number].id, is_finite=False) for number in with_positions}
        return found | {there[place]: one for place, one in said.items()}

    def refuse(self, failed: Sequence[str]) -> None:
        """Stop where too many examples are missing."""
        refuse_failed_import(failed, self.settings.max_failed)


def refuse_others(example: Example, ids: NDArray[np.int64]) -> None:
    """Compare the ids themselves: a hash has only found the row.

    Raises:
        CaptureError: If they differ, which hashes of 64 bits and files that stay as they are do not let happen.
    """
    needed = needed_ids(example)
    if not np.array_equal(ids[: len(needed)], needed):
        raise CaptureError(f"example {example.id}: the capture changed while it was read; run the same command again")
