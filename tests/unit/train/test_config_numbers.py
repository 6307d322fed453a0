"""Numbers and names of a configuration that are none."""

from pathlib import Path

import pytest

from sra_data.errors import ConfigError
from sra_train.config import generation_of, load_config, pairs


@pytest.mark.parametrize(
    "name",
    ["learning_rate", "min_learning_rate", "weight_decay", "epsilon", "max_grad_norm", "projector_learning_rate"],
)
@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_numbers_are_finite(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{name}=(inf|nan): input should be a finite number"):
        load_config(overrides={f"training.{name}": value})


def test_a_seed_is_one_that_generators_take() -> None:
    assert load_config(overrides={"training.seed": (1 << 63) - 1}).training.seed == (1 << 63) - 1
    with pytest.raises(ConfigError, match=r"training\.seed=.*less than"):
        load_config(overrides={"training.seed": 1 << 63})


@pytest.mark.parametrize("teachers", [[""], ["a", ""], [{"name": ""}]])
def test_a_teacher_has_a_name(teachers: list[object]) -> None:
    with pytest.raises(ConfigError, match=r"data\.teachers\.\d\.name"):
        load_config(overrides={"data.teachers": teachers})


def test_a_setting_has_a_key() -> None:
    with pytest.raises(ConfigError, match="--set =3: no key"):
        pairs(["=3"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"max_new_tokens": 0}, r"--max-new-tokens 0: input should be greater than or equal to 1"),
        ({"seeds": (-1,)}, r"--seeds -1: "),
        ({"seeds": (1 << 40,)}, r"--seeds \d+: input should be less than"),
        ({"seeds": ()}, r"--seeds \(\): "),
    ],
)
def test_flags_of_generation_are_named_as_flags(flags: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        generation_of(**flags)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["epochs", "learning_rate", "max_steps", "seed", "warmup"])
@pytest.mark.parametrize("value", [True, False])
def test_yes_and_no_are_no_numbers(key: str, value: bool) -> None:
    with pytest.raises(ConfigError, match=rf"training\.{key}={value}: a number is wanted"):
        load_config(overrides={f"training.{key}": value})


@pytest.mark.parametrize("written", ["[epochs, 3]", "fast", "3"])
def test_a_flag_does_not_hide_a_section_that_is_none(written: str, tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(f"training: {written}\n")
    with pytest.raises(ConfigError, match=r"training=.* holds no keys"):
        load_config(file, {"training.batch_size": 4})
    with pytest.raises(ConfigError, match="training="):
        load_config(file)


def test_a_section_of_nothing_is_that_of_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("training:\n  # epochs: 3\nmethod:\noutput_dir:\n")
    assert load_config(file) == load_config()
    assert load_config(file, {"training.epochs": 4}).training.epochs == 4
