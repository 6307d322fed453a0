"""How far the cache is from the teacher that was there: measured after every run, kept in the manifest.

Sampled examples go through the live teacher once more and are compared with what the shards hold. Two controls stand
beside it: the live teacher against itself in other batches (what no cache can beat; where it is large, that is a
refusal and no excuse), and the cache of ANOTHER example (what a misplaced row looks like; it must be far worse). A good
cosine hides bad channels, so the error outside outlier channels is a number of its own.

Pages by span are measured by span: a row is a centre of mass, and the head is read there.

Legend: P positions (or spans), D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sra_data.endings import Grid
from sra_data.errors import ShardError
from sra_data.models.output_head import OutputHead
from sra_data.shards.schema import TeacherRow
from sra_data.teacher.admission import noise_limit
from sra_data.teacher.batching import plan_batches
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.loading import LoadedTeacher
from sra_data.teacher.spec import CaptureOptions

Floats = NDArray[np.float32]

OUTLIER_RATIO = 6.0  # a channel whose root mean square is this many times the median channel's
RUN = 4  # positions of the stand-in spans whose centres of mass are compared
KL_POSITIONS = 512  # positions whose whole distributions are compared
# Largest relative error outside outlier channels by stored dtype. fp32 is stored as it is; its limit is for noise.
# fp16's and bf16's are four times and twice their unit roundoff (2^-11, 2^-8). int8's is three times the 0.6 % it costs
# normal states, a judgement: where one entry stands far above its block the error may be larger, and is then refused.
ERROR_LIMITS = {"fp32": 1e-4, "fp16": 2e-3, "bf16": 8e-3, "int8": 2e-2}
KL_LIMIT = 5e-3  # nats
CONTROL_ROOM = 4.0  # what the live teacher differs from itself may be exceeded this many times
CONTROLLED = ("relative_error_non_outlier", "kl", "next_log_prob_difference")
SHUFFLED_RATIO = 10.0  # another example's cache must be at least this much further away
LOG_PROB_LIMIT = 1e-3
MISSING_NATS = 100.0  # counted where the other has no number: another example may be cut where this one goes on
SUMS = ("all", "live", "normal", "live_normal")


@dataclass
class Distance:
    """Sums of one comparison against the live teacher; `values` are the means."""

    is_normal: dict[int, NDArray[np.bool_]]  # layer -> [D], channels that are no outliers
    squares: dict[str, float] = field(default_factory=lambda: dict.fromkeys(SUMS, 0.0))
    cosines: list[float] = field(default_factory=list)
    divergences: list[float] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def add_states(self, layer: int, live: Floats, other: Floats, live_mass: Floats, other_mass: Floats) -> None:
        """Compare states [P, D] with attention mass [P]."""
        error, normal = (live - other).astype(np.float64) ** 2, self.is_normal[layer]
        power = live.astype(np.float64) ** 2
        for name, value in (("all", error), ("live", power)):
            self.squares[name] += float(value.sum())
        self.squares["normal"] += float(error[:, normal].sum())
        self.squares["live_normal"] += float(power[:, normal].sum())
        ours, theirs = centres_of_mass(live, live_mass), centres_of_mass(other, other_mass)
        norms = np.linalg.norm(ours, axis=1) * np.linalg.norm(theirs, axis=1)
        self.cosines += ((ours * theirs).sum(axis=1) / np.maximum(norms, 1e-30)).tolist()

    def add_log_probs(self, live: Floats, other: Floats) -> None:
        """Compare the next tokens' log-probabilities [P]; NaN on both sides is agreement, on one as bad as can be."""
        known = ~np.isnan(live)
        differences = np.abs(live[known] - other[known])
        self.log_probs += np.where(np.isnan(differences), MISSING_NATS, differences).tolist()

    def values(self) -> dict[str, float]:
        """The numbers that are kept; those that were not measured are left out."""
        found: dict[str, float] = {}
        if self.squares["live"] > 0:
            found["relative_error"] = (self.squares["all"] / self.squares["live"]) ** 0.5
            found["relative_error_non_outlier"] = (
                self.squares["normal"] / max(self.squares["live_normal"], 1e-30)
            ) ** 0.5
            found["cosine_of_centres"] = float(np.mean(self.cosines))
        if self.divergences:
            found["kl"] = float(np.mean(self.divergences))
        if self.log_probs:
            found["next_log_prob_difference"] = float(np.mean(self.log_probs))
        return found


def centres_of_mass(states: Floats, mass: Floats) -> NDArray[np.float64]:
    """[P, D] and [P] -> [P / 4, D]: runs of four positions, each weighted by its mass (equally, where it has none)."""
    count = max(len(states) // RUN, 1)
    groups = zip(np.array_split(states.astype(np.float64), count), np.array_split(mass, count), strict=True)
    return np.stack(
        [np.average(group, axis=0, weights=weights if weights.sum() > 0 else None) for group, weights in groups]
    )


def measure(
    teacher: LoadedTeacher,
    stored: CaptureOptions,
    examples: Sequence[Example],
    cached: Sequence[TeacherRow],
    *,
    batch_tokens: int,
) -> dict[str, Any]:
    """Compare `cached` rows of `examples` with the live teacher.

    Returns:
        {"examples", "positions", "cache": {...}, "control": {...}, "shuffled": {...}}; see `Distance.values`.
    """
    options = replace(stored, hidden_dtype="fp32" if stored.keeps_states else "none", top_k=0, temperatures=())
    capture = TeacherCapture(teacher.model, options)
    try:
        live: dict[int, Captured] = {}
        for batch in plan_batches([len(example.ids) for example in examples], batch_tokens):
            live |= dict(zip(batch, capture([examples[index] for index in batch]), strict=True))
        alone = [capture([example])[0] for example in examples]
        head, last = capture.head, len(capture.blocks)
    finally:
        capture.close()
    ordered = [live[index] for index in range(len(examples))]
    normal = {layer: _normal_channels(ordered, layer) for layer in options.layer_numbers if options.keeps_states}
    others: dict[str, list[Any]] = {"cache": list(cached), "control": alone, "shuffled": [*cached[1:], *cached[:1]]}
    found: dict[str, Any] = {
        "examples": len(examples),
        "positions": sum(example.num_rows for example in examples),
    }
    for name, rows in others.items():
        distance = Distance(normal)
        for one, other in zip(ordered, rows, strict=True):
            _compare(distance, one, other, head, last)
        found[name] = distance.values()
    return found


def _normal_channels(live: Sequence[Captured], layer: int) -> NDArray[np.bool_]:
    """[D] channels that are no outliers."""
    states = np.concatenate([one.hidden[layer].float32() for one in live])
    power = np.sqrt(np.mean(states.astype(np.float64) ** 2, axis=0))
    return power <= OUTLIER_RATIO * np.median(power)


def _compare(distance: Distance, live: Captured, other: Any, head: OutputHead, last: int) -> None:
    """Add one example; where the other is of another length, the positions both have are compared."""
    for layer in distance.is_normal:
        ours, theirs = live.hidden[layer].float32(), other.hidden[layer].float32()
        count = min(len(ours), len(theirs))
        ones = np.ones(count, np.float32)
        masses = [one.attention[layer][:count] if one.attention else ones for one in (live, other)]
        distance.add_states(layer, ours[:count], theirs[:count], *masses)
        if layer == last:
            wanted = max(0, min(count, KL_POSITIONS - len(distance.divergences)))
            distance.divergences += next_token_divergences(head, ours[:wanted], theirs[:wanted]).tolist()
    if live.next_log_prob is not None and other.next_log_prob is not None:
        count = min(len(live.next_log_prob), len(other.next_log_prob))
        distance.add_log_probs(live.next_log_prob[:count], other.next_log_prob[:count])


@torch.inference_mode()
def next_token_divergences(head: OutputHead, live: Floats, other: Floats, rows_at_once: int = 32) -> NDArray[Any]:
    """[P] KL(P_live || P_other) in nats, of the head over states [P, D]; in float32."""
    found = []
    for start in range(0, len(live), rows_at_once):
        log_probs = []
        for states in (live, other):
            chunk = torch.from_numpy(np.ascontiguousarray(states[start : start + rows_at_once]))
            log_probs.append(head.logits(chunk.to(head.weight.device)).double().log_softmax(dim=-1))
        terms = log_probs[0].exp() * (log_probs[0] - log_probs[1])
        # An id both leave no mass (masked by -inf) is 0 * (inf - inf) and adds nothing.
        found.append(terms.nan_to_num(0.0).sum(dim=-1).clamp(min=0).cpu().numpy())
    return np.concatenate(found) if found else np.empty(0)


def refuse_unfaithful(found: Mapping[str, Any], *, hidden_dtype: str, dtype: torch.dtype, where: str) -> None:
    """Fail where the cache is further from the teacher than its storage explains, or the teacher from itself.

    Args:
        found: by `measure`.
        hidden_dtype: of the stored states.
        dtype: the teacher computes in; it says how large the control may be.
        where: the folder, for the message.

    Raises:
        ShardError: Naming the number, its limit and the control.
    """
    cache, control, shuffled = found["cache"], found["control"], found["shuffled"]
    noise = noise_limit(dtype)
    for name in CONTROLLED:
        # What the limits below leave room for: a large one would excuse anything.
        if name in control and not control[name] <= noise:
            raise ShardError(
                f"{where}: {name.replace('_', ' ')} between live teacher and live teacher is {control[name]:.3g}, "
                f"above {noise:.3g}: what it says of an example depends on the batch; delete the folder and cache "
                "again with --batch-tokens 1, or with another teacher"
            )
    limits = {"kl": KL_LIMIT, "relative_error_non_outlier": ERROR_LIMITS.get(hidden_dtype, 0.0)}
    limits["next_log_prob_difference"] = LOG_PROB_LIMIT
    for name, limit in limits.items():
        allowed = limit + CONTROL_ROOM * control.get(name, 0.0)
        if name in cache and not cache[name] <= allowed:
            raise ShardError(
                f"{where}: {name.replace('_', ' ')} between live teacher and cache is {cache[name]:.3g}, above "
                f"{allowed:.3g} (live against live {control.get(name, 0.0):.3g}); delete the folder and cache again, "
                "with a wider --hidden-dtype"
            )
    name = "relative_error" if "relative_error" in cache else "next_log_prob_difference"
    if found["examples"] > 1 and name in cache and not shuffled[name] > SHUFFLED_RATIO * cache[name]:
        raise ShardError(
            f"{where}: {name.replace('_', ' ')} is {cache[name]:.3g}, that of another example's rows "
            f"{shuffled[name]:.3g}: rows are not where they should be; delete the folder and cache again"
        )


def describe(found: Mapping[str, Any]) -> tuple[Grid, ...]:
    """A measurement as a table, a row a number: cache, live against live, another example's cache; none without one."""
    if not found.get("cache"):
        return ()
    rows = tuple(
        (name.replace("_", " "), f"{value:.3g}", f"{found['control'][name]:.3g}", f"{found['shuffled'][name]:.3g}")
        for name, value in found["cache"].items()
        if name in found["control"] and name in found["shuffled"]
    )
    head = ("measure", "cache", "live against live", "another example's cache")
    return (Grid(rows, head, f"faithfulness on {found['examples']} examples"),)
