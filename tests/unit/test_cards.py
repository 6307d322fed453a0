"""What cards of models and of shards say: only what is known, in the words of the Hub."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import DatasetCard, ModelCard

import sra_data
from sra_data import cards
from sra_data.errors import ConfigError, ShardError
from sra_data.stages.card import write_card
from sra_data.stages.repair import repair
from sra_data.stages.verify import VerifyOptions, verify
from sra_data.terminal import Reporter
from sra_train.config import TrainConfig, load_config
from sra_train.record.card import Told, model_card
from sra_train.record.provenance import ShardFacts, TeacherFacts
from tests.integration.command_lines import write_examples, write_pair

ONE = TeacherFacts("teacher-0", "Qwen/Qwen1.5-1.8B", 1.0, tokenizer="aaaa")
EVALUATED: list[dict[str, Any]] = [
    {"kind": "step", "step": 4, "loss": 3.0},
    {"kind": "evaluation", "step": 4, "loss": 2.0, "bits_per_byte": 1.25, "rouge_l": 17.5},
    {"kind": "evaluation", "step": 8, "loss": 2.5, "bits_per_byte": 1.5, "rouge_l": 16.0},
]


def told(
    student: str = "openai-community/gpt2",
    *,
    teachers: tuple[TeacherFacts, ...] = (ONE,),
    sources: tuple[str, ...] = ("databricks/databricks-dolly-15k:train (1 file)",),
    tokenizer: str = "bbbb",
    records: list[dict[str, Any]] = EVALUATED,
    licence: dict[str, str] | None = None,
    **settings: object,
) -> Told:
    config: TrainConfig = load_config(overrides={name.replace("__", "."): value for name, value in settings.items()})
    return Told(
        config=config,
        student=student,
        facts=ShardFacts("student-0", tokenizer, teachers, sources),
        licence={"license": "mit"} if licence is None else licence,
        roots={"corpus": "ab" * 32},
        versions={"torch": "2.7"},
        records=records,
        extended_at=[],
        exported_step=4,
        total_steps=8,
    )


def test_the_hub_reads_base_model_licence_data_metrics_and_tags() -> None:
    card = model_card(told())
    data = ModelCard(str(card)).data  # as the Hub would read what is written
    assert data.base_model == "openai-community/gpt2"
    assert data.base_model_relation == "finetune"
    assert data.license == "mit"
    assert data.datasets == ["databricks/databricks-dolly-15k"]
    assert data.metrics == ["bits_per_byte", "rouge"]
    assert data.library_name == "transformers"
    assert data.tags == ["sra-distill", "knowledge-distillation", "cross-tokenizer", "sra"]
    assert {one.metric_type: one.metric_value for one in data.eval_results} == {"bits_per_byte": 1.25, "rouge": 17.5}


def test_results_are_those_of_the_weights_that_were_exported() -> None:
    results = model_card(told(records=EVALUATED[2:])).data.eval_results  # of another step
    assert results is None
    assert model_card(told(records=[])).data.metrics is None


def test_fine_tuning_alone_names_no_teacher_and_no_cache() -> None:
    card = model_card(told(teachers=(), method__name="sft"))
    assert card.data.tags == ["sra-distill", "sft"]
    assert "# openai-community/gpt2, fine-tuned" in card.text
    assert "learned from the data alone" in card.text
    assert "| Taught by | nobody |" in card.text
    for word in ("cached words", "tokenizers", "share one tokenizer", "`Qwen"):
        assert word not in card.text


@pytest.mark.parametrize(
    ("teachers", "said", "is_crossed"),
    [
        ((ONE,), "Student and teacher cut text by different tokenizers.", True),
        ((TeacherFacts("t", "m/same", 1.0, tokenizer="bbbb"),), "Student and teacher share one tokenizer.", False),
        (
            (TeacherFacts("t", "m/same", 0.5, tokenizer="bbbb"), TeacherFacts("u", "m/other", 0.5, tokenizer="cccc")),
            "Its tokenizer is not that of `m/other`; the other teachers share it.",
            True,
        ),
    ],
)
def test_tokenizers_are_called_different_only_where_they_are(
    teachers: tuple[TeacherFacts, ...], said: str, is_crossed: bool
) -> None:
    card = model_card(told(teachers=teachers))
    assert said in card.text
    assert ("cross-tokenizer" in card.data.tags) is is_crossed


def test_new_weights_have_no_base_model_and_an_adapter_is_one() -> None:
    fresh = model_card(told(student__init="random"))
    assert fresh.data.base_model is None
    assert "new random weights" in fresh.text
    adapter = model_card(told(student__lora={"export": "adapter"})).data
    assert (adapter.library_name, adapter.base_model_relation) == ("peft", "adapter")
    assert model_card(told(student__lora=True)).data.library_name == "transformers"


def test_where_things_lay_is_not_told(tmp_path: Path) -> None:
    teacher = TeacherFacts("t", str(tmp_path / "mine"), 1.0, tokenizer="aaaa")
    (tmp_path / "student").mkdir()
    sources = (f"{tmp_path}/private/my.jsonl (1 file)", f"{tmp_path}/rows-*.jsonl (3 files)")
    card = model_card(told(str(tmp_path / "student"), teachers=(teacher,), sources=sources))
    assert str(tmp_path) not in str(card)
    assert "my.jsonl (1 file), rows-*.jsonl (3 files)" in card.text
    assert card.data.base_model is None
    assert card.data.datasets is None


def test_an_unknown_licence_is_not_claimed() -> None:
    card = model_card(told(licence={}))
    assert card.data.license is None
    assert "icence" not in str(card)
    other = {"license": "other", "license_name": "mine", "license_link": "https://example.org/terms"}
    card = model_card(told(licence=other))
    assert (card.data.license_name, card.data.license_link) == ("mine", "https://example.org/terms")
    assert (
        "| Licence | other (mine) https://example.org/terms, the student's; the teacher's may ask for more |"
        in card.text
    )


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("databricks/databricks-dolly-15k:train (1 file)", "databricks/databricks-dolly-15k"),
        ("gsm8k:main:train (1 file)", "gsm8k"),
        ("data/train (2 files)", None),  # may be a folder
        ("built-in corpus (all splits)", None),
        ("my.jsonl (1 file)", None),
        ("random words, seed 0", None),
    ],
)
def test_only_what_surely_is_a_hub_data_set_is_called_one(source: str, found: str | None) -> None:
    assert cards.hub_data(source) == found


@pytest.mark.parametrize(
    ("card", "found"),
    [
        ("---\nlicense: apache-2.0\nlanguage: en\n---\n# A model", {"license": "apache-2.0"}),
        ("---\nlicense: other\nlicense_name: own\n---\n", {"license": "other", "license_name": "own"}),
        ('---\nlicense: other\nlicense_link: "a\\nb"\n---\n', {"license": "other"}),
        ("---\nlicense: [mit, apache-2.0]\n---\n", {}),
        ("---\nlicense: mit\nlicense_name: [a, b]\n---\n", {"license": "mit"}),
        ("---\nlicense: 'free | for <all>'\n---\n", {}),
        ("---\nlicense: {a: b}\nself: 1\n---\n", {}),
        ("---\n{{{\n---\n", {}),
        ("no metadata", {}),
    ],
)
def test_a_licence_is_what_the_card_beside_the_model_says(card: str, found: dict[str, str], tmp_path: Path) -> None:
    assert cards.licence_of(str(tmp_path)) == {}
    (tmp_path / "README.md").write_text(card)
    assert cards.licence_of(str(tmp_path)) == found


def test_a_hub_that_cannot_be_reached_leaves_the_licence_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cards.licence_of("some-one/no-such-model") == {}  # offline, as all tests are

    def fail(*unused: object) -> Path:
        raise RuntimeError("anything")

    monkeypatch.setattr(cards, "_downloaded", fail)
    assert cards.licence_of("some-one/model") == {}


# ------------------------------------------------------------------------------------------------- cards of shards


@pytest.fixture
def shards(tmp_path: Path) -> Path:
    """A small folder with one teacher."""
    teacher, student = write_pair(tmp_path)
    data = write_examples(tmp_path / "my.jsonl", 6)
    made = sra_data.align(teacher, student, data=data, out=tmp_path / "shards")
    sra_data.cache_teacher(made.shards, top_k=5)
    return tmp_path / "shards"


def test_the_card_of_shards_names_every_folder_and_where_its_rows_are(shards: Path) -> None:
    summary = write_card(shards, licence="cc-by-sa-3.0")
    card = DatasetCard((shards / "README.md").read_text("utf-8"))
    assert card.data.license == "cc-by-sa-3.0"
    assert card.data.size_categories == ["n<1K"]
    assert card.data.tags == ["sra-shards", "sra-distill", "knowledge-distillation"]
    assert card.data.configs[0] == {"config_name": "corpus", "data_files": "corpus/part-*.parquet", "default": True}
    for one in card.data.configs:
        assert list(shards.glob(one["data_files"]))
    assert {one["config_name"].replace(".", "/", 1) for one in card.data.configs} == set(summary.sections)
    for section in summary.sections:
        assert f"| `{section}` |" in card.text
    assert "6 examples" in card.text
    assert "`teacher`" in card.text
    assert str(shards.parent) not in str(card)


def test_a_card_changes_nothing_of_the_shards_and_is_made_anew(shards: Path) -> None:
    first = write_card(shards)
    assert first.licence is None
    assert "unknown" in first.lines()[0]
    before = (shards / "README.md").read_bytes()
    write_card(shards)
    assert (shards / "README.md").read_bytes() == before
    verify(VerifyOptions(shards, deep=False, teacher=None, sample=1), Reporter()).refuse_if_damaged()
    repair(str(shards), Reporter())
    assert (shards / "README.md").read_bytes() == before


def test_the_licence_of_a_hub_data_set_is_looked_up(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None, str]] = []

    def answer(place: Path) -> Callable[[str, str | None, str], Path]:
        def downloaded(name: str, revision: str | None, kind: str) -> Path:
            asked.append((name, revision, kind))
            return place

        return downloaded

    (shards.parent / "card.md").write_text("---\nlicense: cc-by-sa-3.0\n---\n")
    monkeypatch.setattr(cards, "_downloaded", answer(shards.parent / "card.md"))
    manifest = json.loads((shards / "manifest.json").read_text())
    assert manifest["corpus"]["source"] == [f"{shards.parent / 'my.jsonl'} (1 file)"]
    assert write_card(shards).licence is None
    assert asked == []
    monkeypatch.setattr("sra_data.stages.card.hub_data", lambda source: "owner/data")
    assert write_card(shards).licence == "cc-by-sa-3.0"
    assert asked == [("owner/data", None, "dataset")]


def test_what_cannot_be_a_card_is_refused(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--licence My Own: no identifier of a licence; write, say, cc-by-sa"):
        write_card(shards, licence="My Own")
    (shards / "README.md").write_text("# mine\n")
    with pytest.raises(ShardError, match=r"README\.md: not a card that `sra-data card` wrote; move it away"):
        write_card(shards)
    assert (shards / "README.md").read_text() == "# mine\n"
    with pytest.raises(ShardError, match="no shards here"):
        write_card(tmp_path / "nowhere")
