"""What `cache-teacher` says of the student's next tokens equals a slow count with the live teacher."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sra_data.corpus.tokenization import SideTokenizer
from sra_data.shards.schema import response_positions
from sra_data.shards.store import Manifest, ShardSet
from sra_train.measure.reach import line_of
from tests.integration.command_lines import sra_data, sra_train, write_examples, write_pair

EXAMPLES = 5


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    folder = tmp_path_factory.mktemp("reach")
    teacher, student = write_pair(folder)
    data, out = write_examples(folder / "train.jsonl", EXAMPLES), folder / "shards"
    assert sra_data("align", "--teacher", teacher, "--student", student, "--data", data, "--out", out).exit_code == 0
    answer = sra_data("cache-teacher", out, "--hidden-dtype", "fp32")
    assert answer.exit_code == 0, answer.error
    assert "the next token of" in answer.output
    return teacher, student, out


def test_the_teacher_is_heard_as_a_slow_count_hears_it(world: tuple[Path, Path, Path]) -> None:
    teacher, student, out = world
    (name,) = Manifest.load(out).names("teachers")
    (found,) = Manifest.load(out).sealed(f"teachers/{name}")["reach"]
    model = AutoModelForCausalLM.from_pretrained(teacher).eval()
    theirs, ours = SideTokenizer.load(str(teacher)), SideTokenizer.load(str(student))
    pieces, own_pieces = theirs.vocabulary.byte_strings, ours.vocabulary.byte_strings
    texts = {number: text for number, piece in enumerate(pieces) if (text := text_of(piece)) is not None}
    cuts = zip(texts.items(), ours.cut(list(texts.values())), strict=True)
    firsts = {number: first_piece(text.encode(), own_pieces[ids[0]], own_pieces) for (number, text), ids in cuts}
    with ShardSet.open(out) as shards:
        side = shards.side_of_teacher(name)
        (other,) = set(shards.manifest.names("sides")) - {side}
        pair = shards.pair(student=other, teacher=side)
        rows = list(zip(pair.read(range(EXAMPLES)), shards.side(side).read(range(EXAMPLES)),
                        shards.side(other).read(range(EXAMPLES)), strict=True))  # fmt: skip
    own: list[float] = []
    heard: dict[str, list[float]] = {"equal_bytes": [], "first_piece": []}
    for spans, of_teacher, of_student in rows:
        with torch.no_grad():
            log_probs = model(torch.tensor(of_teacher.ids[None].astype(int))).logits[0].double().log_softmax(-1)
        cached = set(response_positions(of_teacher.response_spans).tolist())
        for ours_at, theirs_at in zip(spans.student_spans[:, 0], spans.teacher_spans[:, 0], strict=True):
            assert int(theirs_at) - 1 in cached
            said, token = log_probs[theirs_at - 1], int(of_student.ids[ours_at])
            own.append(float(said[of_teacher.ids[theirs_at]]) / math.log(2))
            same = [number for number, piece in enumerate(pieces) if piece and piece == own_pieces[token]]
            begins = [number for number, first in firsts.items() if first == token]
            for kind, numbers in (("equal_bytes", same), ("first_piece", begins)):
                if numbers:
                    heard[kind].append(math.log2(sum(float(said[number].exp()) for number in numbers)))
    assert found["starts"] == len(own)
    assert found["own"] == pytest.approx(sum(own) / len(own), abs=1e-4)
    for kind, values in heard.items():
        assert 0 < len(values) <= len(own)
        assert found[kind]["share"] == pytest.approx(len(values) / len(own))
        assert found[kind]["log2_prob"] == pytest.approx(sum(values) / len(values), abs=1e-4)


def test_the_student_is_asked_about_the_same_tokens_before_its_first_step(
    world: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    _, student, out = world
    (name,) = Manifest.load(out).names("teachers")
    (found,) = Manifest.load(out).sealed(f"teachers/{name}")["reach"]
    model = AutoModelForCausalLM.from_pretrained(student).eval()
    own: list[float] = []
    with ShardSet.open(out) as shards:
        side = shards.side_of_teacher(name)
        (other,) = set(shards.manifest.names("sides")) - {side}
        pair, reader = shards.pair(student=other, teacher=side), shards.side(other)
        for spans, ours in zip(pair.read(found["rows"]), reader.read(found["rows"]), strict=True):
            with torch.no_grad():
                said = model(torch.tensor(ours.ids[None].astype(int))).logits[0].double().log_softmax(-1)
            own += [float(said[at - 1, ours.ids[at]]) / math.log(2) for at in spans.student_spans[:, 0].tolist()]
    assert len(own) == found["starts"]
    answer = sra_train("run", out, "--output-dir", tmp_path / "run", "--set", "training.max_steps=1",
                       "--set", "training.batch_size=2")  # fmt: skip
    assert answer.exit_code == 0, answer.error
    assert f"mean log2 p {sum(own) / len(own):.2f} of the student" in answer.error
    again = sra_train("run", out, "--output-dir", tmp_path / "run", "--set", "training.max_steps=1",
                      "--set", "training.batch_size=2")  # fmt: skip
    assert "of the student" not in again.error  # it is no longer the student before its first step


@pytest.mark.parametrize(("teacher", "words"), [(-3.0, "it knows them better"), (-5.0, "IT KNOWS THEM WORSE")])
def test_who_knows_more_is_said(teacher: float, words: str) -> None:
    heard = {"starts": 9, "first_piece": {"share": 0.5, "log2_prob": teacher}}
    heard["equal_bytes"] = {"share": 0.4, "log2_prob": None}
    line = line_of("t", heard, -4.0)
    assert words in line
    assert "(50.0% of them)" in line
    assert "equal bytes" not in line


def first_piece(text: bytes, first: bytes | None, pieces: list[bytes | None]) -> int:
    """The id of the cut's first piece; of the longest piece the text begins with, where the cut's is none of them."""
    if not first or not text.startswith(first):
        first = max((piece for piece in pieces if piece and text.startswith(piece)), key=len)
    return pieces.index(first)


def text_of(piece: bytes | None) -> str | None:
    """A piece that is text by itself."""
    try:
        return piece.decode() if piece else None
    except UnicodeDecodeError:
        return None
