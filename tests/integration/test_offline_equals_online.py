"""Law: the same batch through a live teacher and through a float32 cache gives the same five numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from sra_data.models.output_head import OutputHead
from sra_data.shards.store import ShardSet
from sra_train.config import StudentConfig
from sra_train.contract import Batch, MethodSetting
from sra_train.data.collate import collate
from sra_train.data.reader import RowReader, row_table
from sra_train.data.staging import StagingPool
from sra_train.methods.base import method_type
from sra_train.record.provenance import teacher_knowledge, teacher_shape
from sra_train.student import StudentModel, load_student, model_shape
from tests.integration.command_lines import sra_data, write_examples, write_pair

FIVE = ("ce_sum", "labels", "cos", "geo", "kd")
EXAMPLES = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("world")
    teacher, student = write_pair(folder)
    data, out = write_examples(folder / "train.jsonl", EXAMPLES), folder / "shards"
    arguments = ("--teacher", teacher, "--student", student, "--data", data, "--out", out)
    assert sra_data("align", *arguments).exit_code == 0
    assert sra_data("cache-teacher", out, "--hidden-dtype", "fp32").exit_code == 0
    return teacher, student, out


def live_batch(batch: Batch, shards: ShardSet, teacher: torch.nn.Module, layer: int) -> Batch:
    """The same batch with hidden states and attention from the eager model itself, one example at a time."""
    hidden, attention = torch.zeros_like(batch.teacher_hidden[layer]), torch.zeros_like(batch.teacher_attention[layer])
    for row in range(EXAMPLES):
        ids = torch.from_numpy(shards.corpus.read([row])[0].teacher_ids[None].astype(np.int64))
        with torch.no_grad():
            said = teacher(ids, output_hidden_states=True, output_attentions=True)
        places = batch.teacher_token_index[row][batch.teacher_position_mask[row]]
        weights = said.attentions[layer - 1][0, :, -1].sum(0)
        hidden[row, : len(places)] = said.hidden_states[layer][0, places]
        attention[row, : len(places)] = (weights / weights.sum())[places]
    return replace(batch, teacher_hidden={layer: hidden}, teacher_attention={layer: attention})


@pytest.mark.parametrize("options", [{}, {"kd_vocabulary": "rest"}, {"kd_position": "boundary"}, {"pooling": "mean"}])
def test_offline_equals_online(world, options: dict[str, str]) -> None:
    teacher_folder, student_folder, out = world
    kind = method_type("sra")
    with ShardSet.open(out) as shards:
        alignment = shards.alignment()
        model = load_student(str(student_folder), StudentConfig())
        setting = MethodSetting(model_shape(model), teacher_shape(shards), teacher_knowledge(shards, alignment), seed=3)
        student = StudentModel(model, kind(kind.options_type(**options), setting)).eval()
        reader = RowReader(shards, alignment, student.method.needs, with_text=False)
        rows = list(range(EXAMPLES))
        batch = collate(
            reader(rows), needs=student.method.needs, temperatures=(1.0, 2.0), staging=StagingPool(pinned=False).take()
        )
        teacher = AutoModelForCausalLM.from_pretrained(teacher_folder, attn_implementation="eager").eval()
        layer = max(batch.teacher_hidden)
        totals = row_table(shards, alignment).totals(np.array(rows))
        with torch.no_grad():
            offline = student(batch, totals)["per_example"]
            online = student(with_attention(live_batch, batch, shards, teacher, layer), totals)["per_example"]
        knowledge = teacher_knowledge(shards, alignment)
    assert knowledge.head is not None
    live_head = OutputHead.from_model(teacher)
    torch.testing.assert_close(knowledge.head.weight, live_head.weight.detach())
    assert offline.keys() == online.keys() >= set(FIVE)
    for name in FIVE:
        torch.testing.assert_close(offline[name], online[name], atol=1e-5, rtol=1e-5)
    assert all(float(offline[name].abs().sum()) > 0 for name in FIVE)


def with_attention(make, batch: Batch, shards: ShardSet, teacher: torch.nn.Module, layer: int) -> Batch:
    """`make` the live batch; where the method reads no attention there is none to replace."""
    if batch.teacher_attention:
        return make(batch, shards, teacher, layer)
    filled = replace(
        batch, teacher_attention={layer: torch.zeros_like(batch.teacher_position_mask, dtype=torch.float32)}
    )
    return replace(make(filled, shards, teacher, layer), teacher_attention={})
