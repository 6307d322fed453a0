"""What a run refuses: one line each, and nothing half-written."""

from __future__ import annotations

import re
import shutil

import pytest
import torch

from sra_data.errors import ConfigError, ShardError, TokenizerError, TrainingError
from tests.model_zoo import tiny_model
from tests.synthetic_shards import make_shards, make_tokenizer
from tests.training_runs import Interrupting, student_of, train


def test_the_folder_of_another_run_is_refused_with_the_difference(still, tmp_path) -> None:
    train(still, tmp_path / "out", training__epochs=1)
    with pytest.raises(TrainingError, match=r"holds another run: .*training\.batch_size: 5 then, 4 now") as caught:
        train(still, tmp_path / "out", training__epochs=1, training__batch_size=4)
    assert "\n" not in str(caught.value)
    with pytest.raises(TrainingError, match=r"method\.alpha: 0\.5 then, 0\.75 now"):
        train(still, tmp_path / "out", training__epochs=1, method__alpha=0.75)


def test_a_checkpoint_of_other_shards_is_refused(still, made, tmp_path) -> None:
    other = make_shards(tmp_path / "other", seed=5)
    train(still, tmp_path / "out", training__epochs=1)
    with pytest.raises(TrainingError, match=r"root\.corpus: [0-9a-f]+ then, [0-9a-f]+ now"):
        train(other, tmp_path / "out", training__epochs=1)


def test_a_folder_that_is_no_run_is_refused(still, tmp_path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    with pytest.raises(TrainingError, match="not empty and not the folder of a run"):
        train(still, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_damaged_checkpoint_is_refused(still, tmp_path) -> None:
    with pytest.raises(KeyboardInterrupt):
        train(still, tmp_path / "out", Interrupting(2))
    path = tmp_path / "out" / "checkpoints" / "step-00000002" / "model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(TrainingError, match=r"model\.safetensors: damaged"):
        train(still, tmp_path / "out")


def test_a_student_with_another_tokenizer_is_refused(still, tmp_path) -> None:
    other = tmp_path / "other"
    shutil.copytree(still.student, other)
    make_tokenizer(["quite different words here"], 280, other)
    with pytest.raises(TokenizerError, match=r"is not the one .* was aligned with"):
        train(still, tmp_path / "out", student__name=str(other))
    assert not (tmp_path / "out").exists()


def test_missing_pages_and_columns_are_refused_with_the_command(tmp_path) -> None:
    made = make_shards(tmp_path, top_k=0)
    with pytest.raises(ShardError, match=r"reads top_k\.ids, .*`sra-data cache-teacher .* --top-k 64"):
        train(made, tmp_path / "out", method__kd_source="top_k", method__kd_position="boundary")
    with pytest.raises(ShardError, match=r"reads .*hidden\.1.*`sra-data cache-teacher .* --layers 1,3"):
        train(made, tmp_path / "out", method__layer_pairs=["1:1:0.5", "last:last:0.5"])
    shutil.rmtree(made.shards / "teachers")
    with pytest.raises(ShardError, match="sra-data cache-teacher"):
        train(made, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_empty_development_split_is_refused_only_where_it_is_needed(tmp_path) -> None:
    made = make_shards(tmp_path, num_dev=0)
    with pytest.raises(ConfigError, match=r"development split is empty.*--dev-share"):
        train(made, tmp_path / "out", evaluation__patience=2)
    summary = train(made, tmp_path / "out", training__epochs=1)
    assert summary.exported_step == summary.total_steps


def test_fewer_examples_than_one_batch_are_refused(still, tmp_path) -> None:
    with pytest.raises(TrainingError, match=rf"batch_size=64: .* {still.num_train} examples .*fewer than one batch"):
        train(still, tmp_path / "out", training__batch_size=64)


@pytest.mark.parametrize(("family", "field"), [("gpt2", "n_positions"), ("llama", "max_position_embeddings")])
def test_a_student_with_fewer_positions_than_the_rows_is_refused_before_its_first_step(
    still, tmp_path, family, field
) -> None:
    short = student_of(still, tmp_path / "short", tiny_model(family, vocab_size=300, **{field: 40}))
    with pytest.raises(
        ConfigError, match=r"reads 40 tokens, and \d+ of the 28 rows .* --student-max-length 40,"
    ) as caught:
        train(still, tmp_path / "out", student__name=short)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_a_name_on_the_hub_is_looked_at_before_training(still, tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"hub\.push_to=ann/student: the Hub is switched off \(HF_HUB_OFFLINE\)"):
        train(still, tmp_path / "out", hub__push_to="ann/student")
    assert not (tmp_path / "out").exists()


def test_what_a_run_does_not_measure_is_refused_before_its_first_step(tmp_path) -> None:
    two = make_shards(tmp_path / "two", num_teachers=2)
    chosen = {"data__teachers": [f"{name}:0.5" for name in two.teachers]}
    for metric, near in (("kd[first]", ""), ("router", ""), (f"kd[{two.teachers[0][:-1]}]", f"kd[{two.teachers[0]}]")):
        with pytest.raises(ConfigError, match=rf"evaluation\.metric={re.escape(metric)}: .*{re.escape(near)}"):
            train(two, tmp_path / "out", evaluation__metric=metric, **chosen)
    assert not (tmp_path / "out").exists()
    metric = f"kd[{two.teachers[1]}]"
    found = train(two, tmp_path / "out", evaluation__metric=metric, training__max_steps=1, **chosen)
    assert found.metrics[metric] > 0


def test_a_loss_that_is_nan_stops_the_run_and_names_the_examples(still, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    broken = tmp_path / "broken"
    shutil.copytree(still.student, broken)
    model = AutoModelForCausalLM.from_pretrained(broken)
    with torch.no_grad():
        model.transformer.wpe.weight[20:] = float("nan")  # only long examples reach it
    model.save_pretrained(broken)
    with pytest.raises(TrainingError, match=r"step 1: .*=nan.* with the examples 'example-\d+'") as caught:
        train(still, tmp_path / "out", student__name=str(broken), training__batch_size=20)
    named = str(caught.value).split("examples ")[1].split(";")[0]
    assert 0 < named.count("example-") < 20
    assert not list((tmp_path / "out").glob("checkpoints/*"))
