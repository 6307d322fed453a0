"""Speculators' captures: headers are checked before a byte is believed, and pickles are never opened."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sra_data.captures.speculators import SpeculatorsCapture, captured_layers
from sra_data.errors import CaptureError, ConfigError, SRAError
from tests.model_zoo import tiny_model
from tests.unit.captures.writers import states_of, write_speculators

ROWS = ([1, 5, 9, 33], [1, 7, 7], [3, 4, 5, 6, 7])


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama", seed=3).eval()


def read_whole(folder: Path) -> None:
    capture = SpeculatorsCapture(str(folder))
    for row in capture.rows():
        capture.states_of(row.number, 0, np.arange(1))


def refused(folder: Path) -> str:
    with pytest.raises(CaptureError) as error:
        read_whole(folder)
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_states_are_those_of_their_layer_and_position(model: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    capture = SpeculatorsCapture(str(write_speculators(tmp_path, model, ROWS, (0, 2, 3), dtype=dtype)))
    assert [(row.ids.tolist(), row.num_values) for row in capture.rows()] == [(ids, len(ids)) for ids in ROWS]
    for number, ids in enumerate(ROWS):
        wanted = states_of(model, ids, (0, 2, 3)).to(dtype)
        for place in range(3):
            found = torch.from_numpy(capture.states_of(number, place, np.array([0, 2])))
            found = found.view(dtype) if dtype == torch.bfloat16 else found
            assert torch.equal(found, wanted[[0, 2], place])


def test_pickles_are_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> Any:
            return (Path.touch, (tmp_path / "ran",))

    (tmp_path / "data_0.pt").write_bytes(pickle.dumps(Bomb()))
    assert "pickles and never opened" in refused(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_what_is_no_capture_is_refused(tmp_path: Path) -> None:
    assert "no such folder" in refused(tmp_path / "nowhere")
    assert "no .safetensors file" in refused(tmp_path)
    (tmp_path / "hidden_states").mkdir()
    assert f"give {tmp_path / 'hidden_states'}" in refused(tmp_path)


IDS = torch.arange(4)
STATES = torch.zeros(4, 2, 8)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"token_ids": IDS}, "no hidden_states in it"),
        ({"hidden_states": STATES}, "no token_ids in it"),
        ({"token_ids": IDS[:3].clone(), "hidden_states": STATES}, "3 token_ids for hidden_states"),
        ({"token_ids": IDS.float(), "hidden_states": STATES}, "whole numbers [T]"),
        ({"token_ids": IDS, "hidden_states": STATES[:, 0].clone()}, "[T, layers, channels] are wanted"),
        ({"token_ids": IDS - 7, "hidden_states": STATES}, "token id -7"),
    ],
)
def test_tensors_of_another_kind_are_refused(tmp_path: Path, tensors: Any, words: str) -> None:
    save_file(tensors, tmp_path / "hs_0.safetensors")
    assert words in refused(tmp_path)


def test_files_of_unlike_shapes_are_refused(tmp_path: Path) -> None:
    save_file({"token_ids": IDS, "hidden_states": STATES}, tmp_path / "hs_0.safetensors")
    save_file({"token_ids": IDS, "hidden_states": torch.zeros(4, 3, 8)}, tmp_path / "hs_1.safetensors")
    assert "hs_1.safetensors: hidden_states of 3 layers" in refused(tmp_path)


def header(entries: Any, data: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text + data


ENTRY = {"dtype": "F32", "shape": [1, 1, 2], "data_offsets": [8, 16]}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff" * 64,
        header([]),
        header({"token_ids": 3, "hidden_states": ENTRY}),
        header({"token_ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, "hidden_states": ENTRY}),
        header(
            {"token_ids": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]}, "hidden_states": ENTRY}, bytes(99)
        ),
        header(
            {
                "token_ids": {"dtype": "I64", "shape": [1 << 40], "data_offsets": [0, 8]},
                "hidden_states": ENTRY,
            },
            bytes(16),
        ),
    ],
)
def test_a_file_that_is_not_what_its_header_says_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "hs_0.safetensors").write_bytes(content)
    assert "hs_0.safetensors" in refused(tmp_path)


def test_a_file_cut_off_is_refused(model: Any, tmp_path: Path) -> None:
    folder = write_speculators(tmp_path, model, ROWS, (1, 3))
    whole = (folder / "hs_1.safetensors").read_bytes()
    (folder / "hs_1.safetensors").write_bytes(whole[:-4])
    assert "hs_1.safetensors: tensors of" in refused(folder)


def test_layers_are_those_of_the_server_unless_said() -> None:
    assert captured_layers((), num_captured=4, num_layers=32) == (2, 16, 29, 32)
    assert captured_layers((3, 32), num_captured=2, num_layers=32) == (3, 32)


@pytest.mark.parametrize(
    ("said", "words"),
    [((), "holds 2 layers"), ((3, 9, 32), "holds 2 layers"), ((32, 3), "ascending"), ((3, 33), "0 to 32")],
)
def test_layers_that_cannot_be_are_refused(said: tuple[int, ...], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        captured_layers(said, num_captured=2, num_layers=32)


def test_every_refusal_is_one_of_the_tree() -> None:
    assert issubclass(CaptureError, SRAError)
