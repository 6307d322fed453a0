"""`import` as its users call it: align, another tool's capture, import, train, and what other commands say of it."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

import sra_data as package
from sra_data.shards.store import ShardSet
from sra_train.record.tracking import read_metrics
from tests.integration.command_lines import SENTENCES, sra_data, sra_train, write_examples, write_pair
from tests.model_zoo import tiny_model
from tests.snippets import REPOSITORY, commands_of
from tests.tokenizer_zoo import train_byte_level_bpe, train_unigram
from tests.unit.captures.writers import distillkit_row, write_distillkit, write_speculators

NUM_EXAMPLES = 24
FORMATS = ("distillkit", "speculators")


@dataclass(frozen=True)
class Place:
    """Aligned data, and captures of its teacher."""

    folder: Path

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    def imports(self, format: str) -> list[str]:
        """The words of the command."""
        layers = ["--captured-layers", "1,3"] if format == "speculators" else []
        return ["import", format, str(self.folder / format), str(self.shards), *layers]


def capture_both(shards: Path, teacher: Path, distillkit: Path, speculators: Path, layers: tuple[int, ...]) -> None:
    """What the two tools capture of the texts that the teacher's side of some shards holds."""
    model: Any = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32).eval()
    with ShardSet.open(shards) as opened:
        side = opened.side(opened.manifest.pairs[0]["teacher_side"])
        texts = [row.ids.tolist() for row in side.read(range(len(side)), ["ids"])]
    form = {"d": model.config.vocab_size, "k": 48, "exact_k": 16, "exact_dtype": "bfloat16", "delta_encoding": True}
    form |= {"polynomial_terms": [0, 1, 2, 3, "sqrt"], "term_dtype": "float32"}
    form |= {"residual_bins": [{"scale_dtype": "float16", "element_bits": 6, "num_elements": 16}]}
    write_distillkit(distillkit, [distillkit_row(model, ids, form) for ids in texts], form)
    write_speculators(speculators, model, texts, layers)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Place:
    """Both captures imported; the tests look at them."""
    made = Place(tmp_path_factory.mktemp("import"))
    teacher, student = write_pair(made.folder)
    data = write_examples(made.folder / "my.jsonl", NUM_EXAMPLES)
    aligned = sra_data("align", "--teacher", teacher, "--student", student, "--data", data, "--out", made.shards)
    assert aligned.exit_code == 0, aligned.error
    capture_both(made.shards, teacher, made.folder / "distillkit", made.folder / "speculators", (1, 3))
    for format in FORMATS:
        done = sra_data(*made.imports(format))
        assert done.exit_code == 0, done.error
    return made


def section_of(place: Place, format: str) -> str:
    """The name of the pages that came from a format."""
    with ShardSet.open(place.shards) as shards:
        names = shards.manifest.names("teachers")
        facts = {name: shards.manifest.section(f"teachers/{name}") or {} for name in names}
    (name,) = [name for name, one in facts.items() if one["imported"]["format"] == format]
    return name


@pytest.mark.parametrize(
    ("format", "settings"),
    [
        ("distillkit", ["--method", "boundary", "--set", "method.kd_source=top_k"]),
        ("distillkit", ["--method", "strict", "--set", "method.kd_source=top_k"]),
        ("speculators", ["--method", "boundary"]),
        ("speculators", ["--preset", "tuned"]),
        ("speculators", ["--method", "strict"]),
        ("speculators", ["--method", "alm"]),
        ("speculators", ["--method", "uld"]),
        ("speculators", ["--method", "dskdv2"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value[1:]),
)
def test_a_student_is_trained_from_imported_pages(
    place: Place, tmp_path: Path, format: str, settings: list[str]
) -> None:
    out = tmp_path / "run"
    options = ["--output-dir", out, "--max-steps", 3, "--batch-size", 4, "--set", "tracking.plots=false"]
    done = sra_train("run", place.shards, "--teacher", section_of(place, format), *settings, *options)
    assert done.exit_code == 0, done.error
    steps = [record for record in read_metrics(out / "metrics.jsonl") if record["kind"] == "step"]
    assert len(steps) == 3
    assert all(step["loss"] > 0 for step in steps)
    taught = [name for name in steps[0] if name.startswith(("kd", "alm", "uld", "student_space", "teacher_space"))]
    assert any(steps[0][name] > 0 for name in taught) or not taught


@pytest.mark.parametrize(
    ("format", "settings", "words"),
    [
        ("distillkit", ["--method", "boundary"], "head"),
        ("distillkit", ["--method", "alm"], "next_log_prob"),
        (
            "distillkit",
            ["--method", "boundary", "--set", "method.kd_source=top_k", "--set", "method.temperature=2"],
            "2",
        ),
        ("speculators", ["--method", "sra"], "attention"),
        ("speculators", ["--method", "boundary", "--set", "method.kd_source=top_k"], "top"),
    ],
)
def test_a_method_that_reads_what_no_capture_holds_is_refused_before_its_first_step(
    place: Place, tmp_path: Path, format: str, settings: list[str], words: str
) -> None:
    done = sra_train(
        "run", place.shards, "--teacher", section_of(place, format), *settings, "--output-dir", tmp_path / "run"
    )
    assert done.exit_code == 1
    assert words in done.error
    assert "\n" not in done.error


def test_the_other_commands_say_where_the_pages_come_from(place: Place, tmp_path: Path) -> None:
    listed = sra_data("list", place.shards)
    for format in FORMATS:
        assert f"imported from {NUM_EXAMPLES} rows of {format}" in " ".join(listed.output.split())
    page = tmp_path / "report.html"
    assert sra_data("report", place.shards, "--out", page).exit_code == 0
    assert "not compared with the live teacher" in page.read_text(encoding="utf-8")
    assert sra_data("card", place.shards, "--licence", "mit").exit_code == 0
    card = (place.shards / "README.md").read_text(encoding="utf-8")
    assert "imported from a capture of distillkit, not compared with the live model" in card
    assert sra_data("inspect", "1", "--shards", place.shards).exit_code == 0
    assert sra_data("verify", place.shards).exit_code == 0
    for format in FORMATS:
        said = sra_data("verify", place.shards, "--deep", "--teacher", section_of(place, format), "--device", "cpu")
        assert said.exit_code == 0, said.error
        assert "the teacher said the same" in said.output
    assert "nothing is broken" in sra_data("repair", place.shards).output


def test_the_command_says_what_it_took_and_what_nobody_measured(place: Place) -> None:
    said = sra_data(*place.imports("distillkit"))
    words = " ".join(said.output.split())
    assert f"from {NUM_EXAMPLES} rows of distillkit" in words
    assert "nothing was compared with the live teacher" in words
    assert "--method boundary --set method.kd_source=top_k" in words
    answer = json.loads(sra_data(*place.imports("speculators"), "--json").output)
    assert (answer["format"], answer["num_done"], answer["layers"]) == ("speculators", 0, [3])


def test_python_takes_the_same(place: Place) -> None:
    done = package.import_capture("speculators", place.folder / "speculators", place.shards, captured_layers=(1, 3))
    assert done.section == f"teachers/{section_of(place, 'speculators')}"
    assert done.root


def test_the_page_beside_other_tools_does_what_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its command lines as they stand; of speculators in another folder, where its pages are the only ones."""
    monkeypatch.chdir(tmp_path)
    for name, family, tokenizer, options in (
        ("Qwen/Qwen1.5-1.8B", "llama", train_byte_level_bpe(SENTENCES, 400), {"num_hidden_layers": 24}),
        ("openai-community/gpt2", "gpt2", train_unigram(SENTENCES, 420), {"n_positions": 256}),
    ):
        tiny_model(family, seed=1, vocab_size=len(tokenizer) + 3, **options).save_pretrained(tmp_path / name)
        tokenizer.save_pretrained(tmp_path / name)
    write_examples(tmp_path / "my.jsonl", 12)
    lines = [one.words for one in commands_of(REPOSITORY / "docs" / "others.md") if one.is_whole]
    assert [words[1] for words in lines] == ["align", "import", "run", "import", "run"]
    for number, (program, *arguments) in enumerate(lines):
        if number == 1:
            captured, states = tmp_path / "captured", tmp_path / "hidden_states"
            capture_both(tmp_path / "shards", tmp_path / "Qwen" / "Qwen1.5-1.8B", captured, states, (2, 12, 21, 24))
            shutil.copytree("shards", "again")
        if number == 3:
            shutil.rmtree("shards")
            Path("again").rename("shards")
        more = ["--max-steps", 2, "--batch-size", 4, "--output-dir", f"runs/{number}"] if program == "sra-train" else []
        answer = {"sra-data": sra_data, "sra-train": sra_train}[program](*arguments, *more)
        assert answer.exit_code == 0, answer.error
