"""Ways to hold and train a student: equal where they must be, different where they must be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from sra_data.errors import SRAError
from tests.model_zoo import tiny_model
from tests.synthetic_shards import make_shards
from tests.training_runs import losses, of_evaluations, of_steps, student_of, train, weights


def test_accumulation_equals_the_large_batch(still, tmp_path) -> None:
    train(still, tmp_path / "large")
    train(still, tmp_path / "small", training__micro_batch_size=2)
    assert losses(tmp_path / "small") == pytest.approx(losses(tmp_path / "large"), rel=2e-5)
    one, other = weights(tmp_path / "large"), weights(tmp_path / "small")
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=2e-3, atol=2e-5)


@pytest.mark.parametrize("option", ["training.gradient_checkpointing", "student.attention"])
def test_what_saves_memory_changes_no_loss(still, tmp_path, option) -> None:
    value = "eager" if option == "student.attention" else True
    train(still, tmp_path / "plain", training__epochs=1)
    train(still, tmp_path / "saving", training__epochs=1, **{option: value})
    assert losses(tmp_path / "saving") == pytest.approx(losses(tmp_path / "plain"), rel=1e-5)


def test_int8_and_16_bit_pages_teach_nearly_the_same(tmp_path) -> None:
    found = {}
    for dtype in ("fp32", "fp16", "bf16"):
        made = make_shards(tmp_path / dtype, hidden_dtype=dtype)
        train(made, tmp_path / f"out-{dtype}", training__epochs=1)
        found[dtype] = losses(tmp_path / f"out-{dtype}")
    assert found["fp16"] == pytest.approx(found["fp32"], rel=1e-3)
    assert found["bf16"] == pytest.approx(found["fp32"], rel=1e-2)


def test_bf16_trains(still, tmp_path) -> None:
    train(still, tmp_path / "plain", training__epochs=1)
    train(still, tmp_path / "bf16", training__epochs=1, training__precision="bf16")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "plain"), rel=5e-2)
    assert losses(tmp_path / "bf16") != losses(tmp_path / "plain")


def test_top_k_and_boundary_train(still, tmp_path) -> None:
    train(still, tmp_path / "out", training__epochs=1, method__kd_source="top_k", method__kd_position="boundary")
    assert all(loss > 0 for loss in losses(tmp_path / "out"))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*script_method:DeprecationWarning")  # torch's own, inside its compiler
def test_a_compiled_body_gives_the_same_losses(still, tmp_path) -> None:
    train(still, tmp_path / "plain", training__epochs=1)
    train(still, tmp_path / "compiled", training__epochs=1, training__compile=True)
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)


def test_a_lora_student_is_exported_merged_and_its_base_stays(still, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    summary = train(still, tmp_path / "out", student__lora={"r": 4, "dropout": 0.0})
    assert all("lora" in name or name.startswith("method.") for name in weights(tmp_path / "out"))
    base = AutoModelForCausalLM.from_pretrained(still.student).state_dict()
    merged = AutoModelForCausalLM.from_pretrained(summary.model_folder).state_dict()
    changed = {name for name in base if not torch.equal(base[name], merged[name])}
    assert changed
    assert all(name.endswith("c_attn.weight") for name in changed)


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft, called by the test itself
def test_a_lora_student_can_be_exported_as_its_adapter(still, tmp_path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    merged = train(still, tmp_path / "merged", student__lora={"r": 4})
    adapter = train(still, tmp_path / "adapter", student__lora={"r": 4, "export": "adapter"})
    assert (Path(adapter.model_folder) / "adapter_model.safetensors").is_file()
    model = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(still.student), adapter.model_folder)
    ids = torch.arange(5)[None]
    expected = AutoModelForCausalLM.from_pretrained(merged.model_folder)(ids).logits
    torch.testing.assert_close(model(ids).logits, expected, rtol=1e-4, atol=1e-5)


def test_frozen_parameters_do_not_move(still, tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    summary = train(still, tmp_path / "out", student__freeze=["transformer.wte", "transformer.h.0"])
    before = AutoModelForCausalLM.from_pretrained(still.student).state_dict()
    after = AutoModelForCausalLM.from_pretrained(summary.model_folder).state_dict()
    for name, tensor in before.items():
        is_frozen = name.startswith(("transformer.wte", "transformer.h.0", "lm_head"))
        assert torch.equal(tensor, after[name]) == is_frozen, name


def test_a_student_may_start_from_its_configuration_alone(still, tmp_path) -> None:
    fresh = tmp_path / "fresh"
    shutil.copytree(still.student, fresh)
    (fresh / "model.safetensors").unlink()
    with pytest.raises(SRAError, match=r"no safetensors weights; add them or set student\.init=random"):
        train(still, tmp_path / "refused", student__name=str(fresh))
    summary = train(still, tmp_path / "out", student__name=str(fresh), student__init="random")
    assert summary.model_folder is not None


def test_a_mixture_of_experts_is_trained_with_its_routers_loss_beside_the_methods(still, tmp_path) -> None:
    mixture = student_of(still, tmp_path / "mixture", tiny_model("mixtral", vocab_size=300, router_aux_loss_coef=0.25))
    common = {"student__name": mixture, "method__name": "sft", "training__epochs": 1}
    train(still, tmp_path / "out", evaluation__metric="router", **common)
    terms = {name: of_steps(tmp_path / "out", name) for name in ("loss", "ce", "router")}
    for loss, ce, router in zip(*terms.values(), strict=True):
        assert loss == pytest.approx(ce + 0.25 * router, rel=1e-6)
        assert 2 <= router <= 4  # as many as a token's experts where the load is even, all four where it is not at all
    (measured,) = of_evaluations(tmp_path / "out", "router")
    assert 2 <= measured <= 4
    train(still, tmp_path / "without", training__router_loss=0.0, **common)
    assert losses(tmp_path / "without")[0] == pytest.approx(terms["ce"][0], rel=1e-6)
    assert weights(tmp_path / "without").keys() == weights(tmp_path / "out").keys()
    gate = next(name for name in weights(tmp_path / "out") if name.endswith("gate.weight"))
    assert not torch.equal(weights(tmp_path / "without")[gate], weights(tmp_path / "out")[gate])
