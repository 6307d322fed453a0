"""The configuration: YAML and flags give the same thing, and unknown keys are refused with the nearest name."""

import json

import pytest
import yaml
from pydantic import ValidationError

from sra_data.errors import ConfigError
from sra_train.config import TrainConfig, differences, load_config


def test_a_file_and_flags_give_the_same_configuration(tmp_path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("training: {epochs: 3, learning_rate: 1.0e-4}\nmethod: {name: sra, alpha: 0.6}\n")
    flags = {"training.epochs": "3", "training.learning_rate": "1e-4", "method.name": "sra", "method.alpha": "0.6"}
    assert load_config(file) == load_config(overrides=flags)


def test_flags_stand_over_the_file(tmp_path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("method: sra\ntraining: {epochs: 3, batch_size: 8}\n")
    config = load_config(file, {"training.epochs": 5, "method.kd": False})
    assert (config.training.epochs, config.training.batch_size) == (5, 8)
    assert config.method.options.kd is False


def test_a_bare_switch_keeps_what_the_file_spells_out(tmp_path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("student: {lora: {r: 8}}\n")
    lora = load_config(file, {"student.lora": True}).student.lora
    assert lora is not None
    assert lora.r == 8
    assert load_config(file, {"student.lora": False}).student.lora is None


def test_what_is_printed_reads_back_to_the_same(tmp_path) -> None:
    config = load_config(
        overrides={
            "student.lora": "true",
            "method.layer_pairs": "['6:12:0.5', 'last:last:0.5']",
            "evaluation.generation": {"sets": {"dolly": "builtin:test"}},
        }
    )
    file = tmp_path / "printed.yaml"
    file.write_text(config.to_yaml())
    assert load_config(file) == config
    assert json.loads(json.dumps(config.model_dump(mode="json"))) == yaml.safe_load(config.to_yaml())


def test_the_defaults_are_the_published_recipe() -> None:
    training = load_config().training
    assert (training.learning_rate, training.min_learning_rate, training.warmup) == (5e-4, 5e-6, 0.1)
    assert (training.weight_decay, training.batch_size, training.max_grad_norm) == (0.01, 16, 1.0)
    lora = load_config(overrides={"student.lora": True}).student.lora
    assert lora is not None
    assert (lora.r, lora.alpha, lora.dropout) == (256, 8, 0.1)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"training.epoch": 1}, r"training\.epoch: unknown key; did you mean epochs\?"),
        ({"trainig.epochs": 1}, r"trainig: unknown key; did you mean training\?"),
        ({"method.alhpa": 0.5}, r"method\.alhpa: unknown key; did you mean alpha\?"),
        ({"student.lora": {"rank": 3}}, r"student\.lora\.rank: unknown key; .*known here: r, alpha"),
        ({"training.batch_size": 0}, r"training\.batch_size=0: input should be greater than or equal to 1"),
        ({"training.epochs": "many"}, r"training\.epochs='many': "),
        ({"method.alpha": 2}, r"alpha=2.*\[0, 1\]"),
        ({"method": "sar"}, r"method=sar: no such method; choose one of .*sra"),
        (
            {"evaluation.metric": "bits_per_bite"},
            r"metric=bits_per_bite: not measured .*; did you mean bits_per_byte\?",
        ),
        ({"evaluation.metric": "los"}, r"evaluation\.metric=los: not measured in this run; did you mean loss\?"),
        ({"evaluation.metric": "xyz"}, r"choose one of loss, bits_per_byte, ce, cos, geo, kd, router"),
        ({"evaluation.metric": "kd", "method": "sft"}, r"evaluation\.metric=kd: not measured"),
        ({"evaluation.metric": "geo", "method.geo": False}, r"evaluation\.metric=geo: not measured"),
        ({"evaluation.metric": "cos", "method": "boundary"}, r"evaluation\.metric=cos: not measured"),
        ({"evaluation.metric": "kd[a]"}, r"evaluation\.metric=kd\[a\]: not measured .*; did you mean kd\?"),
        ({"evaluation.metric": "kb[a]", "data.teachers": ["a", "b"]}, r"metric=kb\[a\]: not measured"),
        ({"evaluation.metric": "rouge_l"}, r"rouge_l: nothing is generated; name sets in evaluation\.generation\.sets"),
        (
            {"evaluation.metric": "rouge_l.doly", "evaluation.generation": {"sets": {"dolly": "builtin:test"}}},
            r"did you mean rouge_l\.dolly\?",
        ),
        ({"training.precision": "fp8"}, r"training\.precision='fp8'"),
        ({"tracking.trackers": ["mlflow"]}, r"tracking\.trackers\.0='mlflow'"),
    ],
)
def test_a_mistake_is_one_line_with_the_dotted_name(overrides, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(overrides=overrides)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("metric", "more"),
    [
        ("loss", {}),
        ("ce", {"method": "sft"}),
        ("router", {"method": "sft"}),  # the student tells
        ("cos", {"method": "boundary", "method.lambda_cos": 1.0}),
        ("soft_ce", {"method": "multilevel-ot"}),
        ("kd[b]", {"data.teachers": ["a", "b"]}),  # which names the teachers have, the shards tell
        ("rouge_l.dolly", {"evaluation.generation": {"sets": {"dolly": "builtin:test"}}}),
    ],
)
def test_what_may_be_measured_may_choose_the_best(metric, more) -> None:
    assert load_config(overrides={"evaluation.metric": metric} | more).evaluation.metric == metric


def weights_of(*teachers: str) -> dict[str, float]:
    data = load_config(overrides={"data.teachers": list(teachers)}).data
    return dict(zip([teacher.name for teacher in data.teachers], data.weights, strict=True))


def test_teachers_share_what_the_given_weights_leave() -> None:
    assert weights_of() == {}
    assert weights_of("a") == {"a": 1.0}
    assert weights_of("a", "b", "c", "d") == dict.fromkeys("abcd", 0.25)
    assert weights_of("a", "org/b@main:0.5", "c") == {"a": 0.25, "org/b@main": 0.5, "c": 0.25}
    assert weights_of("a:0.3333333", "b:0.6666666") == {"a": 0.3333333, "b": 0.6666666}
    assert weights_of("C:models") == {"C:models": 1.0}  # no number: part of the name
    assert weights_of("C:models:0.25", "b") == {"C:models": 0.25, "b": 0.75}


def test_teachers_in_a_file_and_as_flags_are_the_same(tmp_path) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("data:\n  teachers:\n  - a\n  - {name: b, weight: 0.25}\n")
    flags = load_config(overrides={"data.teachers": ["a", "b:0.25"]})
    assert load_config(file) == flags
    assert load_config(overrides={"data.teachers": "[a, 'b:0.25']"}) == flags
    assert load_config(overrides={"data.teachers": "a:1"}).data.weights == [1.0]
    (tmp_path / "printed.yaml").write_text(flags.to_yaml())
    assert load_config(tmp_path / "printed.yaml") == flags


@pytest.mark.parametrize(
    ("teachers", "message"),
    [
        (["a:0.5", "b:0.4"], r"data\.teachers: the weights 0\.5, 0\.4 sum to 0\.9; they must sum to 1"),
        (["a:0.5"], r"the weights 0\.5 sum to 0\.5; they must sum to 1"),
        (["a:1", "b"], r"the weights 1 sum to 1 and leave nothing for the teachers without one"),
        (["a:1.5", "b"], r"sum to 1\.5 and leave nothing"),
        (["a:0", "b"], r"a has the weight 0; it must be above 0"),
        (["a:-0.5", "b:1.5"], r"a has the weight -0\.5; it must be above 0"),
        (["a:nan", "b"], r"a has the weight nan"),
        (["a", "b", "a:0.2"], r"a is named twice; name it once, with the sum of the weights"),
        ([{"name": "a", "wieght": 1}], r"data\.teachers\.0\.wieght: unknown key; did you mean weight\?"),
    ],
)
def test_teachers_that_cannot_be_weighed_are_refused(teachers, message) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        load_config(overrides={"data.teachers": teachers})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", ["- a\n- b\n", "a: [", "just words"])
def test_a_file_that_is_no_mapping_is_refused(tmp_path, content) -> None:
    file = tmp_path / "train.yaml"
    file.write_text(content)
    with pytest.raises(ConfigError, match=r"train\.yaml"):
        load_config(file)


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match="cannot read the configuration"):
        load_config(tmp_path / "none.yaml")


def test_an_empty_file_is_the_defaults(tmp_path) -> None:
    (tmp_path / "empty.yaml").write_text("")
    assert load_config(tmp_path / "empty.yaml") == load_config()


def test_the_configuration_is_frozen() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        TrainConfig().training.epochs = 3


def test_identity_names_what_decides_the_numbers_and_nothing_else() -> None:
    old = load_config().identity()
    assert not differences(old, load_config(overrides={"training.micro_batch_size": 2}).identity())
    assert not differences(old, load_config(overrides={"training.micro_batch_tokens": 512}).identity())
    assert not differences(old, load_config(overrides={"checkpoints.keep_last": 9, "output_dir": "x"}).identity())
    assert not differences(old, load_config(overrides={"data.prefetch": 7, "tracking.plots": False}).identity())
    changed = load_config(overrides={"training.batch_size": 8, "method.alpha": 0.25}).identity()
    assert differences(old, changed) == [
        "method.alpha: 0.5 then, 0.25 now",
        "training.batch_size: 16 then, 8 now",
    ]


@pytest.mark.parametrize("given", ["flag", "file"])
def test_precision_no_is_a_word_and_no_false(tmp_path, given) -> None:
    (tmp_path / "config.yaml").write_text("training:\n  precision: no\n")
    file, overrides = (None, {"training.precision": "no"}) if given == "flag" else (tmp_path / "config.yaml", None)
    assert load_config(file, overrides).training.precision == "no"
