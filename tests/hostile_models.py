"""Model folders as a stranger could have made them, and every way in which a command opens one."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sra_data.errors import SRAError
from sra_data.teacher.loading import load
from sra_data.teacher.spec import TeacherSpec
from sra_train.config import StudentConfig
from sra_train.measure.evaluation import EvaluateOptions, load_model
from sra_train.student import load_student
from tests.model_zoo import tiny_model

WEIGHTS = "model.safetensors"
Open = Callable[[Path], object]
OPENERS: dict[str, Open] = {
    "teacher": lambda folder: load(TeacherSpec(str(folder), device="cpu")),
    "student": lambda folder: load_student(str(folder), StudentConfig()),
}
EVALUATED: Open = lambda folder: load_model(str(folder), EvaluateOptions((str(folder),), "data", device="cpu"))  # noqa: E731
NEW_WEIGHTS: Open = lambda folder: load_student(str(folder), StudentConfig(init="random"))  # noqa: E731


def model_folder(place: Path, family: str = "llama", **config: Any) -> Path:
    """A tiny model's folder, its configuration changed behind its back."""
    tiny_model(family).save_pretrained(place)
    return with_config(place, **config)


def with_config(folder: Path, **config: Any) -> Path:
    """The same folder with values set in its config.json; None takes a key out."""
    path = folder / "config.json"
    settings = {key: value for key, value in (json.loads(path.read_text()) | config).items() if value is not None}
    path.write_text(json.dumps(settings))
    return folder


def safetensors_parts(file: Path) -> tuple[dict[str, Any], bytes]:
    """The header of a safetensors file and what stands behind it."""
    content = file.read_bytes()
    size = 8 + int.from_bytes(content[:8], "little")
    return json.loads(content[8:size]), content[size:]


def safetensors_bytes(header: Any, body: bytes) -> bytes:
    """A file of that header, whatever it says."""
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


class Payload:
    """What runs code where it is unpickled: it makes a file."""

    def __init__(self, made: Path) -> None:
        self.made = made

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.made,)


def pickle_that_makes(made: Path) -> bytes:
    """A pickle that makes a file where it is loaded as one."""
    return pickle.dumps({"model.embed_tokens.weight": Payload(made)})


def refusal(opened: Open, folder: Path) -> str:
    """The one line that a folder is refused with."""
    with pytest.raises(SRAError) as raised:
        opened(folder)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def said_by(step: Callable[..., object], *arguments: Any) -> str:
    """What a step is refused with; empty where it is not."""
    try:
        step(*arguments)
    except SRAError as error:
        return str(error)
    return ""
