"""Rows of the shards become one padded batch of tensors: here the student's side, in `pages` each teacher's.

Padding is on the right, by length. A slot without a row becomes one token of id 0 with weight 0, no label and no span:
it adds nothing to any term, on any method that keeps to the contract of `Batch`. What a batch is wide comes from the
shards' columns and not from its rows, so a batch of nothing but empty slots is a batch like any other.

Which positions predict a label, and where spans end, stands in the batch as rows of indices: everything is known here,
and a forward that looked for it would make the host wait.

Legend: B examples, N student tokens, R labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from sra_data.errors import ShardError
from sra_train.contract import IGNORED_LABEL, Batch
from sra_train.data.examples import ExampleParts, name_of
from sra_train.data.index_rows import label_rows
from sra_train.data.pages import PageForm, teacher_batch
from sra_train.data.staging import StagingBuffer


def collate(examples: Sequence[ExampleParts | None], *, forms: Sequence[PageForm], staging: StagingBuffer) -> Batch:
    """Build the batch of `examples` on the CPU.

    Args:
        examples: One entry a slot; None for a slot that no row fills.
        forms: What is read of each teacher, and in which form; none for a method without a teacher.
        staging: Where the tensors live; the batch is valid until the buffer is given back.

    Raises:
        ShardError: If an example's parts do not belong together.
    """
    ids = [np.zeros(1, np.int32) if one is None else one.side.ids for one in examples]
    lengths = np.array([len(one) for one in ids], dtype=np.int64)
    if not lengths.all():
        raise ShardError(f"example {name_of(examples[int(lengths.argmin())])}: no tokens; run `sra-data verify`")
    shape = (len(examples), int(lengths.max()))
    input_ids = staging.full("input_ids", shape, 0, torch.int64)
    labels = staging.full("labels", shape, IGNORED_LABEL, torch.int64)
    for slot, one in enumerate(examples):
        input_ids[slot, : lengths[slot]] = torch.from_numpy(ids[slot].astype(np.int64))
        for start, stop in [] if one is None else one.side.label_spans.tolist():
            labels[slot, start:stop] = input_ids[slot, start:stop]
    return Batch(
        example_ids=[name_of(one) for one in examples],
        weight=staging.copied("weight", np.array([one is not None for one in examples], np.float32)),
        input_ids=input_ids,
        labels=labels,
        lengths=staging.copied("lengths", lengths),
        label_rows=label_rows("label_rows", labels.numpy(), staging),
        teachers=tuple(
            teacher_batch(examples, labels.numpy(), place=place, form=form, staging=staging)
            for place, form in enumerate(forms)
        ),
    )
