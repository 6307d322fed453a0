"""A tokenizer's folder with anything in it is a tokenizer or one line; its templates run in a sandbox."""

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sra_data.corpus.chat import OK, Renderer
from sra_data.corpus.examples import Row
from sra_data.corpus.tokenization import SideTokenizer
from sra_data.errors import SRAError
from tests.hostile_models import pickle_that_makes
from tests.tokenizer_zoo import train_byte_level_bpe
from tests.unit.models.test_folder_fuzz import changes

MOST = 25  # examples of each law


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tokenizer") / "small"
    train_byte_level_bpe(["some text to cut"], 280).save_pretrained(folder)
    return folder


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small, tmp_path / "tokenizer"))


def refusal(folder: Path) -> str:
    """The one line a tokenizer is refused with; empty where it cuts a text."""
    said = ""
    try:
        SideTokenizer.load(str(folder))
    except SRAError as error:
        said = str(error)
    assert "\n" not in said
    return said


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_a_file_that_is_cut_or_something_else_is_one_line(folder: Path, tmp_path: Path, name: str) -> None:
    path, made = folder / name, tmp_path / "made"
    whole = path.read_bytes()
    for content in (
        b"",
        whole[: len(whole) // 2],
        b"[]",
        b"null",
        b"[" * 100_000,
        pickle_that_makes(made),
        b"\xff\xfe",
    ):
        path.write_bytes(content)
        assert refusal(folder)
    assert not made.exists()


def test_a_tokenizer_in_a_pickle_is_not_opened(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    for name in ("tokenizer.json", "tokenizer.model", "vocab.bin", "vocab.pkl", "vocab.txt", "merges.txt"):
        (folder / name).write_bytes(pickle_that_makes(made))
    refusal(folder)
    assert not made.exists()


def test_code_beside_a_tokenizer_does_not_run_unless_asked(folder: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    path = folder / "tokenizer_config.json"
    settings_of = json.loads(path.read_text())
    (folder / "evil.py").write_text(f"open({str(made)!r}, 'w').close()\n")
    for kind in ("PreTrainedTokenizerFast", "EvilTokenizer"):
        path.write_text(
            json.dumps({**settings_of, "tokenizer_class": kind, "auto_map": {"AutoTokenizer": ["evil.E", "evil.E"]}})
        )
        refusal(folder)
    assert not made.exists()


def test_an_absurd_configuration_beside_a_tokenizer_is_one_line(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "num_hidden_layers": 10**12}))
    assert "config.json says num_hidden_layers 1000000000000, at most" in refusal(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json"])
def test_anything_in_a_tokenizers_files_is_a_tokenizer_or_one_line(folder: Path, name: str) -> None:
    path = folder / name
    content = json.loads(path.read_text())
    if "model" in content:  # its hundreds of entries are alike
        content["model"]["vocab"] = dict(list(content["model"]["vocab"].items())[:260])
        content["model"]["merges"] = []

    @settings(max_examples=MOST, deadline=None, derandomize=True)
    @given(st.data())
    def changed(data: st.DataObject) -> None:
        said: dict[str, Any] = copy.deepcopy(content)
        model = said.pop("model", None)
        said = data.draw(changes(said))
        path.write_text(json.dumps(said | ({} if model is None else {"model": model})))
        refusal(folder)

    changed()


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ messages.append(1) }}",
        "{% for",
        "{{ nothing.at.all }}",
        "{{ 1 // 0 }}",
        "{{ range(10**12) | list }}",
    ],
)
def test_a_template_that_reaches_out_is_refused_by_the_sandbox(folder: Path, template: str) -> None:
    side = SideTokenizer.load(str(folder))
    side.chat_template = template
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = Renderer(side).render([Row("id", "here", None, None, chat, "train", None)])
    assert rendered.statuses != [OK]
