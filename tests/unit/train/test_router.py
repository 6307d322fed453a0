"""The router loss of a mixture of experts: the model's own value and gradient, whatever else is in the batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sra_data.errors import ConfigError, ModelError
from sra_train.config import LoraConfig
from sra_train.contract import Batch, MethodSetting, StepTotals
from sra_train.data.index_rows import label_rows
from sra_train.data.staging import StagingBuffer
from sra_train.methods import SFT
from sra_train.methods.sft import SFTOptions
from sra_train.router import has_experts, router_loss_of
from sra_train.student import StudentModel, add_lora, model_shape, prepare_for_training
from tests.model_zoo import FAMILIES, tiny_model
from tests.waits import WaitCounter

MIXTURES = ("mixtral", "qwen2_moe")
LENGTHS = (9, 5, 7)


def student(family: str = "mixtral", coefficient: float | None = None, **sizes: object) -> StudentModel:
    model = tiny_model(family, **sizes).train()
    method = SFT(SFTOptions(), MethodSetting(student=model_shape(model)))
    return StudentModel(model, method, router=router_loss_of(model, coefficient, who="student s"))


def batch(lengths: tuple[int, ...] = LENGTHS, *, first: int = 0, fillers: int = 0) -> Batch:
    """Examples numbered from `first`, always the same ones, and slots that no row fills."""
    rows = [
        torch.randint(3, 97, (n,), generator=torch.Generator().manual_seed(first + i)) for i, n in enumerate(lengths)
    ]
    rows += [torch.zeros(1, dtype=torch.int64)] * fillers
    input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    real = torch.tensor([*lengths, *[1] * fillers])
    mask = torch.arange(input_ids.shape[1]) < real[:, None]
    weight = torch.tensor([1.0] * len(lengths) + [0.0] * fillers)
    labels = torch.where(mask & (weight[:, None] > 0), input_ids, -100)
    return Batch(
        example_ids=[str(first + index) for index in range(len(rows))],
        weight=weight,
        input_ids=input_ids,
        labels=labels,
        lengths=real,
        label_rows=label_rows("label_rows", labels.numpy(), StagingBuffer(pinned=False)),
    )


def totals(data: Batch) -> StepTotals:
    return StepTotals(labels=float((data.labels[:, 1:] != -100).sum()), examples=float(data.weight.sum()))


def gradients(one: StudentModel) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in one.model.named_parameters() if p.grad is not None}


def own_answer(one: StudentModel, data: Batch) -> tuple[Tensor, Tensor]:
    """(loss with the router's, router loss) as transformers' whole model says them."""
    mask = (torch.arange(data.input_ids.shape[1]) < data.lengths[:, None]).long()
    said = one.model(input_ids=data.input_ids, attention_mask=mask, labels=data.labels, output_router_logits=True)
    return said.loss, said.aux_loss


@pytest.mark.parametrize("family", MIXTURES)
def test_a_mixture_of_experts_learns_by_the_loss_and_gradient_of_the_whole_model(family: str) -> None:
    one, data = student(family), batch()
    assert one.router is not None
    assert one.router.coefficient == one.model.config.router_aux_loss_coef > 0
    found = one(data, totals(data))
    found["total"].backward()
    own = gradients(one)
    one.model.zero_grad()
    loss, aux = own_answer(one, data)
    loss.backward()
    torch.testing.assert_close(found["terms"]["router"], aux.detach(), rtol=1e-5, atol=0)
    torch.testing.assert_close(found["total"], loss, rtol=1e-5, atol=1e-6)
    assert float(aux.detach()) > one.router.top_k  # its load is not even
    expected = gradients(one)
    assert own.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(
            own[name], gradient, rtol=1e-3, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


def test_the_coefficient_of_the_configuration_stands_over_the_models_own() -> None:
    data = batch()
    without, with_ten = student(coefficient=0), student(coefficient=10.0)
    assert without.router is None
    assert "router" not in without(data, totals(data))["terms"]
    one, other = without(data, totals(data))["total"], with_ten(data, totals(data))
    torch.testing.assert_close(other["total"], one + 10 * other["terms"]["router"], rtol=1e-5, atol=1e-6)


def test_rows_that_only_fill_the_batch_have_no_part_in_the_router_loss() -> None:
    one = student()
    plain, filled = batch(), batch(fillers=2)
    expected, found = (one(data, totals(plain)) for data in (plain, filled))
    torch.testing.assert_close(found["terms"]["router"], expected["terms"]["router"], rtol=1e-5, atol=0)
    torch.testing.assert_close(found["total"], expected["total"], rtol=1e-5, atol=1e-6)
    nothing = one(batch((), fillers=2), totals(plain))
    nothing["total"].backward()
    assert float(nothing["total"].detach()) == float(nothing["terms"]["router"]) == 0.0
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients(one).values())


def test_a_steps_router_loss_is_the_mean_of_its_micro_batches_by_their_examples() -> None:
    one, whole = student(), batch()
    pieces = [batch(LENGTHS[:2]), batch(LENGTHS[2:], first=2, fillers=1)]
    added = sum(float(one(piece, totals(whole))["terms"]["router"]) for piece in pieces)
    alone = [float(own_answer(one, piece)[1].detach()) for piece in (pieces[0], batch(LENGTHS[2:], first=2))]
    assert added == pytest.approx((2 * alone[0] + alone[1]) / 3, rel=1e-5)


def test_recomputed_blocks_give_the_same_gradient() -> None:
    found = []
    for recomputes in (False, True):
        one, data = student(coefficient=1.0), batch()
        prepare_for_training(one.model, gradient_checkpointing=recomputes, compile_body=False)
        one(data, totals(data))["total"].backward()
        found.append(gradients(one))
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, rtol=1e-4, atol=1e-7)


def test_adapters_learn_from_the_router_loss_though_the_router_is_frozen() -> None:
    data, own = batch(), student(coefficient=1.0)
    adapted = add_lora(tiny_model("mixtral").train(), LoraConfig(r=2, dropout=0.0))
    router = router_loss_of(adapted, 1.0, who="student s")
    one = StudentModel(adapted, own.method, router=router)
    found = one(data, totals(data))
    torch.testing.assert_close(found["terms"]["router"], own(data, totals(data))["terms"]["router"], rtol=1e-5, atol=0)
    found["total"].backward()
    moved = gradients(one)
    assert moved
    assert all("lora" in name for name in moved)


@pytest.mark.parametrize("family", MIXTURES)
def test_the_router_loss_never_waits_for_the_device(family: str) -> None:
    one, data = student(family), batch(fillers=1)
    assert one.router is not None
    said = one.body(data.input_ids, data.lengths, router_logits=True)
    with WaitCounter() as waits:
        one.router(said.router_logits, data.lengths, data.weight, data.input_ids.shape[1]).backward()
    assert waits.found == {}


def test_only_mixtures_have_experts() -> None:
    assert {family for family in FAMILIES if has_experts(tiny_model(family))} == set(MIXTURES)
    assert all(router_loss_of(tiny_model(family), None, who="s") is None for family in ("llama", "gpt2", "mamba"))
    assert router_loss_of(tiny_model("llama"), 0.0, who="s") is None
    with pytest.raises(ConfigError, match=r"training\.router_loss=0\.5: student s has no router; leave it out"):
        router_loss_of(tiny_model("llama"), 0.5, who="student s")


class Sparse(torch.nn.Module):
    """A block's mixture of experts in a family that knows no router loss."""


class DenseMoE(Sparse):
    """Named as such blocks are."""


def test_a_mixture_without_a_router_loss_is_refused_and_trained_only_where_that_is_wanted() -> None:
    model = tiny_model("llama")
    model.model.layers[1].mlp.add_module("mixture", DenseMoE())
    with pytest.raises(ModelError) as caught:
        router_loss_of(model, None, who="student s")
    assert str(caught.value) == (
        "student s: LlamaForCausalLM is a mixture of experts, and no router loss of its family is known here;"
        " set training.router_loss=0 to train it without one, or choose another student"
    )
    assert router_loss_of(model, 0.0, who="student s") is None


def test_a_router_loss_that_is_not_the_whole_models_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("mixtral")
    whole = model.forward

    def otherwise(**asked):
        said = whole(**asked)
        said.aux_loss = said.aux_loss * 1.01
        return said

    monkeypatch.setattr(model, "forward", otherwise)
    with pytest.raises(ModelError, match="the router loss of MixtralForCausalLM cannot be had from its body alone"):
        router_loss_of(model, None, who="student s")


def test_proving_leaves_the_model_as_it_was() -> None:
    model = tiny_model("mixtral").train()
    before = {name: one.clone() for name, one in model.state_dict().items()}
    assert router_loss_of(model, None, who="s") is not None
    assert model.training
    assert all(torch.equal(before[name], one) for name, one in model.state_dict().items())
