"""One padded batch of ids in, what the teacher says at the asked positions out.

The body runs once, without its head, on right-padded ids and without a padding mask: attention is causal, so no real
token sees padding, and the attention kernels keep their fast causal path. Hidden states are cut out at the asked
positions inside the forward, so no list of all layers' states exists; the head runs on those positions alone, a chunk
at a time, so no [tokens, vocabulary] tensor of a batch exists either; of attention there is one row per example.

With granularity "span" an example's rows are spans instead of positions: the states of each span's tokens are pooled
into their centre of mass before anything is kept, and the head reads that.

Legend: B examples, N padded tokens, P positions of one example (its spans, by span), Q positions of the batch, D hidden
size, V vocabulary, k top-k ids, T temperatures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sra_data.errors import ModelError
from sra_data.models.attention import LastQueryAttention
from sra_data.models.decoder import decoder_body, decoder_layers, length_border, unwrap
from sra_data.models.devices import free_memory, is_out_of_memory, kernels_for_any_shape
from sra_data.models.output_head import OutputHead
from sra_data.models.placement import device_of_module
from sra_data.shards.codecs import EncodedTensor, encode_float32
from sra_data.spans.pooling import center_of_mass
from sra_data.teacher.spec import CaptureOptions
from sra_data.teacher.tensor_parallel import team
from sra_data.teacher.topk import chosen_logits, top_k_with_tails

# Logits held at a time. A GPU works on a chunk with a dozen kernels, which have to be large: on an H100 a teacher of
# 1.8 B with a vocabulary of 151,936 read 51,000 tokens a second by 64 MB, 79,000 by 512 MB, 80,000 by 2 GB.
LOGITS_CHUNK_BYTES = {"cpu": 64 << 20}
GPU_CHUNK_BYTES = 512 << 20
# On CPUs, memory above 32 MB goes back to the system and comes again page by page: smaller chunks run twice as fast.
CPU_CHUNK_BYTES = 16 << 20
ROWS_FOR_A_PRODUCT = 128


@dataclass(frozen=True)
class Example:
    """One example's tokens and the positions wanted of it.

    Attributes:
        id: names it in errors.
        ids: [N] token ids, special tokens included.
        positions: [P] token indices, ascending.
        span_ids: by span, [P] which span each position belongs to, counted from 0 without a gap; else None.
    """

    id: str
    ids: NDArray[np.int32]
    positions: NDArray[np.int32]
    span_ids: NDArray[np.int64] | None = None

    @property
    def num_rows(self) -> int:
        """How many rows are captured: spans or positions."""
        if self.span_ids is None:
            return len(self.positions)
        return int(self.span_ids[-1]) + 1 if len(self.span_ids) else 0

    @property
    def next_ids(self) -> NDArray[np.int64]:
        """[P] id of the token after each position, -1 where nothing follows (the example was cut)."""
        following = np.append(self.ids, -1)
        return following[self.positions + 1].astype(np.int64)


@dataclass
class Captured:
    """What the teacher said about one example, as it is stored.

    Attributes:
        id: the example's.
        is_finite: False where an activation or a logit was NaN or infinite.
        hidden: layer -> [P, D].
        attention: layer -> [P] float32, the last real token's attention, normalised over the whole example; by span
            the sum over its tokens.
        top_k_ids, top_k_values: [P, k].
        log_tails: [T, P] float32.
        next_log_prob: [P] float32, NaN where nothing follows; None by span.
    """

    id: str
    is_finite: bool = True
    hidden: dict[int, EncodedTensor] = field(default_factory=dict)
    attention: dict[int, NDArray[np.float32]] = field(default_factory=dict)
    top_k_ids: NDArray[np.int32] | None = None
    top_k_values: NDArray[Any] | None = None
    log_tails: NDArray[np.float32] | None = None
    next_log_prob: NDArray[np.float32] | None = None


class TeacherCapture:
    """A teacher made ready to speak: attached once, then called with batch after batch."""

    def __init__(
        self,
        model: nn.Module,
        options: CaptureOptions,
        channel_scales: dict[int, NDArray[np.float32]] | None = None,
    ) -> None:
        """Attach to `model` (in eval mode); "int8" hidden states need `channel_scales` [D] per layer.

        Raises:
            ModelError: For a layer out of range, a layer without attention, or a top-k above the vocabulary.
        """
        assert options.attention or not options.by_span, "a centre of mass needs attention"
        self.head = OutputHead.from_model(model).detach()
        if options.top_k > self.head.vocabulary_size:
            raise ModelError(
                f"--top-k {options.top_k}: the teacher's vocabulary has {self.head.vocabulary_size} ids; ask for fewer"
            )
        self.body = decoder_body(model)
        self.blocks = decoder_layers(model)
        self.options = options = options.resolved(len(self.blocks))
        self.layers = options.layer_numbers
        self.device = self.head.weight.device  # of the head: where what is cut out of the layers comes together
        self.entry = device_of_module(unwrap(model).get_input_embeddings())
        self.channel_scales = channel_scales or {}
        self.border = length_border(model)
        self.num_splits = 0
        # By span the head reads the last layer's centres of mass, so its attention is needed whatever is kept.
        attended = {*self.layers, len(self.blocks)} if options.by_span else self.layers
        self.team = team()
        total = None if self.team is None else self.team.total
        self.reader = LastQueryAttention.attach(model, sorted(attended), total=total) if options.attention else None

    def close(self) -> None:
        """Give the model back as it was."""
        if self.reader is not None:
            self.reader.detach()

    def __call__(self, examples: Sequence[Example]) -> list[Captured]:
        """Capture a batch, in two where its long rows would change what is said of its short ones.

        Where memory runs out it is halved (and `num_splits` counts it), until it fits.

        Raises:
            ModelError: If a single example does not fit into memory.
        """
        if self.border is not None and len({len(example.ids) > self.border for example in examples}) == 2:
            is_long = [len(example.ids) > self.border for example in examples]
            long, short = (
                iter(self([one for one, flag in zip(examples, is_long, strict=True) if flag is kind]))
                for kind in (True, False)
            )
            return [next(long) if flag else next(short) for flag in is_long]
        try:
            return self.capture(examples)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if self.team is not None:  # the others are inside that forward, and nobody knows where
                longest = max(len(one.ids) for one in examples)
                raise ModelError(
                    f"a batch of {len(examples)} examples, the longest of {longest} tokens: out of memory on "
                    f"{self.device}; use a smaller --batch-tokens, or more processes"
                ) from error
            if len(examples) == 1:
                raise ModelError(
                    f"example {examples[0].id} ({len(examples[0].ids)} tokens): out of memory on {self.device} even "
                    "alone; use a smaller --dtype, a larger device, or align again with a smaller --max-length"
                ) from error
        # Outside the handler, so that the failed forward's tensors are free before the halves run.
        free_memory()
        self.num_splits += 1
        middle = len(examples) // 2
        return self(examples[:middle]) + self(examples[middle:])

    @kernels_for_any_shape()
    @torch.inference_mode()
    def capture(self, examples: Sequence[Example]) -> list[Captured]:
        """One forward of one right-padded batch."""
        lengths = torch.tensor([len(example.ids) for example in examples])
        ids = np.zeros((len(examples), int(lengths.max())), dtype=np.int64)  # any id will do as padding
        for row, example in enumerate(examples):
            ids[row, : len(example.ids)] = example.ids
        counts = [len(example.positions) for example in examples]
        rows = torch.from_numpy(np.repeat(np.arange(len(examples)), counts)).to(self.device)  # [Q]
        columns = torch.from_numpy(np.concatenate([example.positions for example in examples]).astype(np.int64))
        columns = columns.to(self.device)  # [Q]
        hidden, attention = self._forward(torch.from_numpy(ids).to(self.entry), lengths - 1, rows, columns)
        if self.options.by_span:
            counts = [example.num_rows for example in examples]
            hidden, attention = _pool(
                hidden, attention, torch.from_numpy(_span_ids(examples)).to(self.device), sum(counts)
            )
        last = hidden[len(self.blocks)]
        if self.options.by_span:
            last = last.to(self.head.weight.dtype)  # the product is computed in the states' dtype
        captured = [Captured(example.id) for example in examples]
        finite = torch.ones(sum(counts), dtype=torch.bool, device=self.device)  # [Q]
        for states in hidden.values():
            finite &= states.isfinite().all(dim=-1)
        finite &= self._read_logits(last, examples, captured, counts)
        for layer, mass in attention.items():
            finite &= mass.isfinite()
            for one, values in zip(captured, _split(mass.cpu().numpy(), counts), strict=True):
                if layer in self.layers:
                    one.attention[layer] = values
        for one, values in zip(captured, _split(finite.cpu().numpy(), counts), strict=True):
            one.is_finite = bool(values.all())
        for layer in self.layers if self.options.keeps_states else ():
            encoded = self._encode(layer, hidden[layer])
            start = 0
            for one, count in zip(captured, counts, strict=True):
                one.hidden[layer] = encoded[start : start + count]
                start += count
        return captured

    def _forward(
        self, ids: Tensor, query_index: Tensor, rows: Tensor, columns: Tensor
    ) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
        """Body forward: hidden states [Q, D] of asked layers (and the last), attention [Q], all on the head's device.

        They are cut where their layer is: a model may be spread over devices, and no whole state travels.
        """
        hidden: dict[int, Tensor] = {}
        last = len(self.blocks)
        with ExitStack() as stack:
            inner = [layer for layer in self.layers if layer != last]
            stack.enter_context(_cut_hidden(self.blocks, inner, rows, columns, hidden))
            attention: dict[int, Tensor] = {}
            if self.reader is not None:
                attention = stack.enter_context(self.reader.capture(query_index.to(self.device)))
                if self.team is not None:
                    stack.enter_context(self.team.reads(self.reader.layers, query_index))
            output = self.body(input_ids=ids, use_cache=False)
        hidden[last] = _cut(output[0], rows, columns)
        return hidden, {layer: _cut(row, rows, columns) for layer, row in attention.items()}

    def _read_logits(
        self, hidden: Tensor, examples: Sequence[Example], captured: list[Captured], counts: list[int]
    ) -> Tensor:
        """Head over [Q, D] in chunks; fills `captured`; returns [Q], whether the logits were finite."""
        options = self.options
        next_ids: Tensor | None = None
        if not options.by_span:
            next_ids = torch.from_numpy(np.concatenate([example.next_ids for example in examples])).to(self.device)
        pieces: dict[str, list[Tensor]] = {}
        chunk = self._rows_per_chunk()
        for start in range(0, len(hidden), chunk):
            part = slice(start, start + chunk)
            logits = self.head.float32_logits(hidden[part])  # [chunk, V]
            next_logits = None if next_ids is None else chosen_logits(logits, next_ids[part])
            found: dict[str, Tensor] = {}
            if options.top_k:
                top = top_k_with_tails(logits, top_k=options.top_k, temperatures=options.temperatures)
                found |= {"top_k_ids": top.ids, "top_k_values": top.values, "log_tails": top.log_tails.T}
                log_normalizer = top.log_normalizer
            else:
                log_normalizer = logits.logsumexp(dim=-1)
            # One NaN or +inf among the logits makes their log-sum-exp so; -inf (masked ids) does not.
            found["finite"] = log_normalizer.isfinite()
            if next_logits is not None:
                found["next_log_prob"] = next_logits - log_normalizer
            for name, tensor in found.items():
                pieces.setdefault(name, []).append(tensor)
        whole = {name: torch.cat(tensors) for name, tensors in pieces.items()}
        finite = whole.pop("finite")
        for name, tensor in whole.items():
            for one, values in zip(captured, _split(_stored(name, tensor, options), counts), strict=True):
                setattr(one, name, np.ascontiguousarray(values.T) if name == "log_tails" else values)
        return finite

    def _rows_per_chunk(self) -> int:
        """Positions whose logits are formed at a time: few enough for caches and memory, enough for a fast product."""
        bytes_per_row = 4 * self.head.vocabulary_size
        at_once = self.options.logits_chunk_bytes or LOGITS_CHUNK_BYTES.get(self.device.type, GPU_CHUNK_BYTES)
        largest = max(1, at_once // bytes_per_row)
        if self.device.type != "cpu":
            return largest
        return min(largest, max(ROWS_FOR_A_PRODUCT, CPU_CHUNK_BYTES // bytes_per_row))

    def _encode(self, layer: int, states: Tensor) -> EncodedTensor:
        """[Q, D] in the model's dtype -> as stored."""
        dtype = self.options.hidden_dtype
        if dtype == "bf16":
            return EncodedTensor("bf16", states.to(torch.bfloat16).view(torch.uint16).cpu().numpy())
        if dtype == "fp16":
            return EncodedTensor("fp16", states.to(torch.float16).cpu().numpy())
        return encode_float32(states.float().cpu().numpy(), dtype, self.channel_scales.get(layer))


def _stored(name: str, tensor: Tensor, options: CaptureOptions) -> NDArray[Any]:
    if name.endswith("_ids"):
        return tensor.cpu().numpy().astype(np.int32)
    if name == "top_k_values":
        # float16 reaches -65,504; a log-probability below that is stored as that.
        half = np.finfo(np.float16)
        values = tensor.cpu().numpy()
        return values if options.top_k_dtype == "fp32" else np.maximum(values, half.min).astype(np.float16)
    return tensor.float().cpu().numpy()


def _span_ids(examples: Sequence[Example]) -> NDArray[np.int64]:
    """[Q] the span of each position, counted through the batch."""
    pieces, first = [], 0
    for example in examples:
        assert example.span_ids is not None, f"example {example.id} came without spans"
        pieces.append(example.span_ids + first)
        first += example.num_rows
    return np.concatenate(pieces)


def _pool(
    hidden: dict[int, Tensor], attention: dict[int, Tensor], span_ids: Tensor, num_spans: int
) -> tuple[dict[int, Tensor], dict[int, Tensor]]:
    """States [Q, D] and attention [Q] -> centres of mass and masses of each span, in float32.

    The whole batch is pooled as one example: its spans are numbered through.
    """
    states: dict[int, Tensor] = {}
    masses: dict[int, Tensor] = {}
    for layer, tokens in hidden.items():
        centers = center_of_mass(tokens[None], span_ids[None], attention[layer][None], num_spans)
        states[layer], masses[layer] = centers.states[0], centers.mass[0]
    return states, masses


def _split(values: NDArray[Any], counts: list[int]) -> list[NDArray[Any]]:
    """[Q, ...] -> one array per example."""
    return np.split(values, np.cumsum(counts)[:-1])


def _cut(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """[B, N, ...] at [Q] places, cut where the values are and brought to where the places are."""
    return values[rows.to(values.device), columns.to(values.device)].to(rows.device)


@contextmanager
def _cut_hidden(
    blocks: nn.ModuleList, layers: Sequence[int], rows: Tensor, columns: Tensor, kept: dict[int, Tensor]
) -> Iterator[None]:
    """Keep only [Q, D] of the inner layers' outputs while the body runs."""

    def keep(layer: int) -> Callable[[nn.Module, Any, Any], None]:
        def hook(block: nn.Module, arguments: Any, output: Any) -> None:
            states = output[0] if isinstance(output, tuple) else output
            kept[layer] = _cut(states, rows, columns)

        return hook

    handles = [blocks[layer - 1].register_forward_hook(keep(layer)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
