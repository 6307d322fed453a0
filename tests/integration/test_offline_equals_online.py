"""Law: the same batch through live teachers and through float32 caches gives the same five numbers."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from sra_data.models.output_head import OutputHead
from sra_data.shards.schema import response_positions
from sra_train.contract import TeacherBatch
from sra_train.data.knowledge import teacher_head
from sra_train.data.sources import TeacherSource
from tests.integration.command_lines import sra_data, write_examples, write_pair
from tests.integration.lessons import FIVE, Lesson, lesson
from tests.model_zoo import tiny_model
from tests.tokenizer_zoo import train_sentencepiece_bpe

EXAMPLES = 6
OPTIONS = [
    {},
    {"kd_vocabulary": "rest"},
    {"kd_position": "boundary"},
    {"kd_position": "boundary", "kd_vocabulary": "byte_prefix"},
    {"pooling": "mean"},
    {"spans": "single"},
]
NEXT_TOKENS = [{"name": "boundary"}, {"name": "boundary", "kd_vocabulary": "next_byte"}, {"name": "strict"}]


@dataclass(frozen=True)
class World:
    """Shards of two teachers, with other widths and tokenizers, and the models."""

    teacher: Path
    second: Path
    student: Path
    shards: Path


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    folder = tmp_path_factory.mktemp("world")
    teacher, student = write_pair(folder)
    second, tokenizer = folder / "second", train_sentencepiece_bpe()
    sizes = {"vocab_size": len(tokenizer) + 2, "hidden_size": 48, "max_position_embeddings": 256}
    tiny_model("llama", seed=5, num_hidden_layers=2, **sizes).save_pretrained(second)
    tokenizer.save_pretrained(second)
    data, out = write_examples(folder / "train.jsonl", EXAMPLES), folder / "shards"
    arguments = ("--teacher", teacher, "--teacher", second, "--student", student, "--data", data, "--out", out)
    assert sra_data("align", *arguments).exit_code == 0
    for one in (teacher, second):
        answer = sra_data("cache-teacher", out, "--teacher", one, "--hidden-dtype", "fp32")
        assert answer.exit_code == 0, answer.error
    return World(teacher, second, student, out)


def live(pages: TeacherBatch, source: TeacherSource, teacher: nn.Module) -> TeacherBatch:
    """The same part of the batch with what the eager model itself says, one example at a time."""
    hidden = {layer: torch.zeros_like(states) for layer, states in pages.hidden.items()}
    attention = {layer: torch.zeros_like(weights) for layer, weights in pages.attention.items()}
    for row, side in enumerate(source.side.read(range(EXAMPLES))):
        ids = torch.from_numpy(side.ids[None].astype(np.int64))
        with torch.no_grad():
            said = teacher(ids, output_hidden_states=True, output_attentions=True)
        places = torch.from_numpy(response_positions(side.response_spans).astype(np.int64))
        for layer, states in hidden.items():
            states[row, : len(places)] = said.hidden_states[layer][0, places]
        for layer, weights in attention.items():
            query = said.attentions[layer - 1][0, :, -1].sum(0)
            weights[row, : len(places)] = (query / query.sum())[places]
    return replace(pages, hidden=hidden, attention=attention)


def assert_equal(taught: Lesson, folders: list[Path], names: tuple[str, ...]) -> None:
    models = [AutoModelForCausalLM.from_pretrained(one, attn_implementation="eager").eval() for one in folders]
    parts = zip(taught.batch.teachers, taught.sources.teachers, models, strict=True)
    offline = taught.per_example()
    online = taught.per_example(replace(taught.batch, teachers=tuple(live(*part) for part in parts)))
    assert offline.keys() == online.keys() >= set(names)
    for name in names:
        torch.testing.assert_close(offline[name], online[name], atol=1e-5, rtol=1e-5)
        assert float(offline[name].abs().sum()) > 0
    for source, model in zip(taught.sources.teachers, models, strict=True):
        stored = teacher_head(taught.sources, source.name)
        torch.testing.assert_close(stored.weight, OutputHead.from_model(model).weight.detach())


@pytest.mark.parametrize("options", OPTIONS)
def test_offline_equals_online(world: World, options: dict[str, str]) -> None:
    with lesson(world.shards, world.student, range(EXAMPLES), teachers=[world.teacher], **options) as taught:
        assert_equal(taught, [world.teacher], FIVE)


@pytest.mark.parametrize("options", NEXT_TOKENS)
def test_offline_equals_online_where_next_tokens_are_taught(world: World, options: dict[str, str]) -> None:
    teachers = [world.teacher, f"{world.second}:0.25"]
    with lesson(world.shards, world.student, range(EXAMPLES), teachers=teachers, **options) as taught:
        names = tuple(f"kd[{source.name}]" for source in taught.sources.teachers)
        assert_equal(taught, [world.teacher, world.second], ("ce_sum", "labels", "kd", *names))


@pytest.mark.parametrize("name", ["boundary", "strict"])
def test_rows_that_stand_beside_each_other_have_read_the_same_text(world: World, name: str) -> None:
    """On both sides the last token that was read ends at one character; strictly, the next ends at one too."""
    teachers = [world.teacher, world.second]
    with lesson(world.shards, world.student, range(EXAMPLES), teachers=teachers, name=name) as taught:
        width, ours = taught.batch.input_ids.shape[1], taught.sources.side.read(range(EXAMPLES))
        for pages, source in zip(taught.batch.teachers, taught.sources.teachers, strict=True):
            theirs, rows = source.side.read(range(EXAMPLES)), pages.aligned
            assert rows is not None
            columns = rows.example.tolist(), rows.student_positions.tolist(), rows.teacher_positions.tolist()
            starts = 0
            for example, position, row in zip(*columns, strict=True):
                here, there = position % width, int(response_positions(theirs[example].response_spans)[row])
                assert position // width == example
                assert ours[example].ends[here] == theirs[example].ends[there]
                starts += here == int(ours[example].response_spans[0, 0]) - 1
                if name == "strict":
                    assert ours[example].ends[here + 1] == theirs[example].ends[there + 1]
            assert starts == EXAMPLES if name == "boundary" else starts > 0
            assert len(rows.example) > 2 * EXAMPLES


@pytest.mark.parametrize("options", OPTIONS)
def test_offline_equals_online_with_two_teachers(world: World, options: dict[str, str]) -> None:
    teachers = [world.teacher, f"{world.second}:0.25"]
    with lesson(world.shards, world.student, range(EXAMPLES), teachers=teachers, **options) as taught:
        names = [source.name for source in taught.sources.teachers]
        of_each = tuple(f"{term}[{name}]" for term in ("cos", "geo", "kd") for name in names)
        assert_equal(taught, [world.teacher, world.second], FIVE + of_each)
