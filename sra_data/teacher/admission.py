"""What a teacher must be before anything of what it says is written: one room, one line for each refusal.

What a configuration tells is refused from there (`refuse_config`, before weights are read). The rest is asked of the
model itself, by a few forwards of the corpus's own rows through the very capture that will make the pages (`admit`):
it reads the longest of them; it says the same when asked again; a later token changes nothing before it; an example is
said the same alone and beside others in a batch; its states are numbered and as wide as the pages take them to be.

A difference is measured by channel and position, each counting alike: one outlier channel, or the first position,
would hide the others. What arithmetic explains is let through (`NOISE_LIMITS`), a larger one never is.

Legend: N tokens, P positions, D hidden size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from sra_data.errors import ModelError
from sra_data.models.declared import refuse_sizes
from sra_data.models.decoder import decoder_layers, refuse_encoder, states_offset
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.spec import CaptureOptions

Ids = NDArray[np.int32]

# Largest difference of a teacher from itself, relative: kernels differ by the shape of a batch. bf16's and fp16's are
# some twenty-five times and sixty times their unit roundoff, for the depth of a model; a judgement. A position encoding
# stretched for another row's length, or a token seen from before it, is 0.2 and more.
NOISE_LIMITS = {torch.float32: 1e-3, torch.float16: 3e-2, torch.bfloat16: 1e-1}
PROBE_POSITIONS = 64  # of each row, spread over it
SHORTEST_PROBE = 4  # tokens; fewer have no before and after


def noise_limit(dtype: torch.dtype) -> float:
    """How far a teacher that computes in `dtype` may be from itself."""
    return NOISE_LIMITS.get(dtype, NOISE_LIMITS[torch.bfloat16])


def refuse_config(name: str, config: Any) -> None:
    """Refuse what no pages can be made of, before its weights are read.

    Raises:
        ModelError: For a model of an encoder and a decoder, and one whose sizes are none.
    """
    refuse_sizes(config, who=f"teacher {name}")
    refuse_encoder(config, who=f"teacher {name}")


def rows_to_probe(num_tokens: Sequence[int] | NDArray[Any]) -> list[int]:
    """Numbers of the shortest, the median and the longest example that are read, each once, ascending by length."""
    lengths = np.asarray(num_tokens)
    read = np.flatnonzero(lengths > 0)
    ordered = read[np.argsort(lengths[read], kind="stable")]
    chosen = [int(ordered[place]) for place in (0, len(ordered) // 2, len(ordered) - 1)] if len(ordered) else []
    return list(dict.fromkeys(chosen))


@dataclass(frozen=True)
class Probe:
    """What a teacher is asked, and who is asked.

    Attributes:
        name: of the teacher.
        model: loaded, in eval mode.
        options: what will be kept, resolved.
        rows: [N] ids each, ascending by length; the last is the longest example there is.
        ids_that_occur: ascending; what a changed token becomes is one of them.
        is_batched: whether an example may share its batch with others.
    """

    name: str
    model: nn.Module
    options: CaptureOptions
    rows: Sequence[Ids]
    ids_that_occur: NDArray[np.int32]
    is_batched: bool = True


def admit(probe: Probe) -> None:
    """Ask a teacher whether pages of it would be true.

    Raises:
        ModelError: Saying what it gets wrong, by how much, and what to do.
    """
    rows = [np.resize(row, max(len(row), SHORTEST_PROBE)) for row in probe.rows]
    if len(rows) == 1:
        rows.insert(0, rows[0][: max(len(rows[0]) // 2, SHORTEST_PROBE)])
    if min(probe.options.layer_numbers) < len(decoder_layers(probe.model)):
        states_offset(probe.model)
    with _asking(probe) as capture:
        alone = _alone(probe, capture, rows)
        _refuse_widths(capture, alone[-1])
        if not any(one.is_finite for one in alone):
            raise ModelError(
                f"teacher {probe.name}: its activations are NaN or infinite on all {len(rows)} examples it was tried "
                "with; try --dtype bf16 or fp32"
            )
        _refuse_unsteady(probe, capture, rows, alone)
        _refuse_looking_ahead(probe, capture, rows)
        if probe.is_batched:
            _refuse_batch_dependent(probe, capture, rows, alone)


@contextmanager
def _asking(probe: Probe) -> Iterator[TeacherCapture]:
    """The capture that the pages are made with, of positions and in full precision."""
    options = replace(probe.options, hidden_dtype="fp32", top_k=0, temperatures=(), granularity="token")
    capture = TeacherCapture(probe.model, options)
    try:
        yield capture
    finally:
        capture.close()


def _example(ids: Ids, before: int | None = None) -> Example:
    """A row with some positions, all of them before the token numbered `before` where that is given."""
    stop = len(ids) if before is None else before
    positions = np.unique(np.linspace(0, stop - 1, min(stop, PROBE_POSITIONS)).astype(np.int32))
    return Example(f"of {len(ids)} tokens", ids.astype(np.int32), positions)


def _alone(probe: Probe, capture: TeacherCapture, rows: Sequence[Ids]) -> list[Captured]:
    """What is said of each row by itself.

    Raises:
        ModelError: With the number of tokens from which on the teacher fails.
    """
    said: list[Captured] = []
    for row in rows:
        try:
            said += capture([_example(row)])
        except (IndexError, RuntimeError, ValueError) as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            most = _most_tokens(capture, row, fits=len(rows[len(said) - 1]) if said else 0)
            if most == 0:
                raise ModelError(
                    f"teacher {probe.name}: cannot read an example of {len(row)} tokens ({reason}); use a decoder-only "
                    "model that AutoModelForCausalLM opens"
                ) from error
            raise ModelError(
                f"teacher {probe.name}: the longest example has {len(rows[-1])} tokens, it reads {most} ({reason}); "
                f"run `sra-data align` with --teacher {probe.name} and --teacher-max-length {most}, which adds a side"
            ) from error
    return said


def _most_tokens(capture: TeacherCapture, row: Ids, *, fits: int) -> int:
    """How many tokens of a row that is too long are read, by halving; 0 where not one is."""
    fails = len(row)
    while fails - fits > 1:
        middle = (fits + fails) // 2
        try:
            capture([_example(row[:middle])])
            fits = middle
        except (IndexError, RuntimeError, ValueError):
            fails = middle
    return fits


def _refuse_widths(capture: TeacherCapture, said: Captured) -> None:
    """Refuse layers whose states are not as wide as those the head reads: pages have one width."""
    width = int(capture.head.weight.shape[1])
    for layer, states in said.hidden.items():
        found = states.float32().shape[-1]
        if found != width:
            raise ModelError(
                f"--layers {layer}: the teacher's states there are {found} wide, its output head reads {width}, and "
                "pages have one width; keep the last layer alone, with --layers last"
            )


def _refuse_unsteady(probe: Probe, capture: TeacherCapture, rows: Sequence[Ids], alone: Sequence[Captured]) -> None:
    """Ask once more about the shorter rows, longest first as in a unit: a short one may reset a memory."""
    limit = noise_limit(capture.head.weight.dtype)
    for row, first in reversed(list(zip(rows[:-1], alone[:-1], strict=True))):
        (again,) = capture([_example(row)])
        if not (found := difference(first, again)) <= limit:
            raise ModelError(
                f"teacher {probe.name}: what it says of one example ({len(row)} tokens) differs by {found:.3g} when "
                f"asked again after a longer one (limit {limit:.3g}); use a model without state or randomness"
            )


def _refuse_looking_ahead(probe: Probe, capture: TeacherCapture, rows: Sequence[Ids]) -> None:
    """Change the later half of a row: nothing before it may change."""
    limit = noise_limit(capture.head.weight.dtype)
    row = rows[len(rows) // 2]
    change = len(row) // 2
    other = row.copy()
    other[change:] = _others(row[change:], probe.ids_that_occur)
    said, changed = (capture([_example(ids, before=change)])[0] for ids in (row, other))
    for one in (said, changed):
        one.attention = {}  # of the last token, which did change
        assert one.next_log_prob is not None
        one.next_log_prob = one.next_log_prob[:-1]  # the last is that of a changed token
    if not (found := difference(said, changed)) <= limit:
        raise ModelError(
            f"teacher {probe.name}: not causal, what it says at a position differs by {found:.3g} when later tokens "
            f"change (limit {limit:.3g}); use a decoder-only model that was trained to predict the next token"
        )


def _others(ids: Ids, ids_that_occur: NDArray[np.int32]) -> Ids:
    """For each id the next one that occurs."""
    places = np.searchsorted(ids_that_occur, ids) + 1
    return ids_that_occur[places % len(ids_that_occur)].astype(np.int32)


def _refuse_batch_dependent(
    probe: Probe, capture: TeacherCapture, rows: Sequence[Ids], alone: Sequence[Captured]
) -> None:
    """All rows in one batch: each must be said as it is alone."""
    limit = noise_limit(capture.head.weight.dtype)
    together = capture([_example(row) for row in rows])
    for row, one, other in zip(rows, alone, together, strict=True):
        if not (found := difference(one, other)) <= limit:
            raise ModelError(
                f"teacher {probe.name}: what it says of an example of {len(row)} tokens differs by {found:.3g} beside "
                f"one of {len(rows[-1])} in its batch (limit {limit:.3g}); let it read each alone, with "
                "--batch-tokens 1"
            )


def difference(one: Captured, other: Captured) -> float:
    """How far two sayings about one example are apart; 0 where either is not finite, which is judged elsewhere.

    The largest of: the relative error of a layer's states (the median channel's, each position counting alike), the
    difference of a position's attention, and that of the next tokens' log-probabilities, relative to their size or 1.
    """
    if not (one.is_finite and other.is_finite):
        return 0.0
    found = [states_apart(states.float32(), other.hidden[layer].float32()) for layer, states in one.hidden.items()]
    found += [float(np.abs(mass - other.attention[layer]).max()) for layer, mass in one.attention.items()]
    if one.next_log_prob is not None and other.next_log_prob is not None:
        known = ~np.isnan(one.next_log_prob)
        if known.any():
            ours, theirs = one.next_log_prob[known].astype(np.float64), other.next_log_prob[known].astype(np.float64)
            size = max(float(np.sqrt(np.mean(ours**2))), 1.0)
            found.append(float(np.sqrt(np.mean((ours - theirs) ** 2))) / size)
    return max(found, default=0.0)


def states_apart(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> float:
    """Relative error of states [P, D]: the median over channels, positions brought to one size."""
    sizes = np.maximum(np.median(np.abs(ours).astype(np.float64), axis=1, keepdims=True), 1e-30)  # [P, 1]
    error = np.sqrt((((ours - theirs) / sizes) ** 2).sum(axis=0))  # [D]
    power = np.sqrt(((ours / sizes) ** 2).sum(axis=0))
    return float(np.median(error / np.maximum(power, 1e-30)))
