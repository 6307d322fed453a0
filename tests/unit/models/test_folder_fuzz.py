"""Anything in the place of anything in a model's folder: it opens, or it is one line; nothing else happens."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hostile_models import (
    NEW_WEIGHTS,
    OPENERS,
    WEIGHTS,
    model_folder,
    safetensors_bytes,
    safetensors_parts,
    said_by,
)

MOST = 25  # examples of each law
NUMBERS = (None, True, -1, 0, 1, 2, 3.5, 97, 1e308, float("nan"), 2**31, 2**53 + 1, 10**6, 10**12, 10**40)
TEXTS = ("", "x", "..", "a/b", "\x00", "\ud800", "9" * 5000, "float16", "evil--evil.Evil", "cuda")
OTHERS = ([], [[]], [None], [10**12], {}, {"": {}}, {"a": None}, {"rope_type": "yarn"}, {"quant_method": "x"})
ODD = st.sampled_from([*NUMBERS, *TEXTS, *OTHERS]).map(copy.deepcopy)
KEYS = (
    "head_dim",
    "layer_types",
    "rope_parameters",
    "text_config",
    "auto_map",
    "quantization_config",
    "attn_implementation",
    "num_labels",
    "sliding_window",
    "dtype",
)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model's folder."""
    return model_folder(tmp_path_factory.mktemp("small") / "model")


@pytest.fixture
def folder(small: Path, tmp_path: Path) -> Path:
    """A copy to damage."""
    return Path(shutil.copytree(small, tmp_path / "model"))


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


@st.composite
def changes(draw: st.DrawFn, value: dict[str, Any]) -> dict[str, Any]:
    """A JSON object with one or two places changed, left out or added."""
    changed = copy.deepcopy(value)
    for _ in range(draw(st.integers(1, 2))):
        known = list(places(changed))
        *path, last = draw(st.sampled_from(known)) if known else [draw(st.sampled_from(KEYS))]
        place = changed
        for key in path:
            place = place[key]
        how = draw(st.sampled_from(["set", "set", "drop", "add"]))
        if how == "drop" and known:
            del place[last]
        elif how == "add" and isinstance(place, dict):
            place[draw(st.sampled_from(KEYS))] = draw(ODD)
        else:
            place[last] = draw(ODD)
    return changed


def only_one_line(folder: Path) -> None:
    """Every way of opening it gives a model, or one line."""
    for opened in (OPENERS["teacher"], OPENERS["student"], NEW_WEIGHTS):
        assert "\n" not in said_by(opened, folder)


def test_anything_in_a_configuration_is_a_model_or_one_line(folder: Path) -> None:
    path = folder / "config.json"

    @settings(max_examples=MOST, deadline=None, derandomize=True)
    @given(changes(json.loads(path.read_text())))
    def changed(config: dict[str, Any]) -> None:
        path.write_text(json.dumps(config))
        only_one_line(folder)

    changed()


def test_anything_in_a_header_of_weights_is_a_model_or_one_line(folder: Path) -> None:
    path = folder / WEIGHTS
    header, body = safetensors_parts(path)

    @settings(max_examples=MOST, deadline=None, derandomize=True)
    @given(changes(header), st.sampled_from([0, 0, 0, 1, -1, 1 << 60]))
    def changed(said: dict[str, Any], off: int) -> None:
        content = safetensors_bytes(said, body)
        length = int.from_bytes(content[:8], "little") + off
        path.write_bytes(length.to_bytes(8, "little") + content[8:])
        only_one_line(folder)

    changed()


def test_any_bytes_in_a_models_file_are_a_model_or_one_line(folder: Path) -> None:
    @settings(max_examples=MOST, deadline=None, derandomize=True)
    @given(st.sampled_from(["config.json", WEIGHTS, "generation_config.json"]), st.binary(max_size=64), st.data())
    def changed(name: str, content: bytes, data: st.DataObject) -> None:
        path = folder / name
        before = path.read_bytes()
        place = data.draw(st.integers(0, len(before)))
        path.write_bytes(before[:place] + content + before[place + len(content) :])
        only_one_line(folder)
        path.write_bytes(before)

    changed()
