"""Laws of the output head: the model's own logits for every family, whole or restricted, live or from its state."""

from __future__ import annotations

import pytest
import torch

from sra_data.errors import ModelError
from sra_data.models import output_head
from sra_data.models.output_head import OutputHead, check_output_head
from tests.model_zoo import FAMILIES, tiny_model


@pytest.mark.parametrize("family", list(FAMILIES))
def test_head_over_last_states_gives_the_models_logits(family: str) -> None:
    model = tiny_model(family)
    ids = torch.arange(3, 30)[None]
    with torch.no_grad():
        output = model(input_ids=ids, output_hidden_states=True)
    head = OutputHead.from_model(model)
    torch.testing.assert_close(head.logits(output.hidden_states[-1]), output.logits, atol=1e-6, rtol=1e-6)
    check_output_head(model, head)


@pytest.mark.parametrize("family", ["llama", "gemma2", "cohere", "phi", "granite"])
@pytest.mark.parametrize("keeps_sums", [False, True])
def test_logits_in_float32_are_those_of_the_whole_product(family: str, keeps_sums: bool, monkeypatch) -> None:
    """Where a device hands over float32 sums of halves, the rest of the head is as it is elsewhere."""
    monkeypatch.setattr(output_head, "_keeps_sums", lambda hidden: keeps_sums)
    monkeypatch.setattr(output_head, "_sums", lambda hidden, weight: hidden.float() @ weight.float().T)
    head = OutputHead.from_model(tiny_model(family).bfloat16())
    exact = OutputHead.from_model(tiny_model(family).bfloat16().float())
    hidden = torch.randn(6, 32).bfloat16()
    found = head.float32_logits(hidden)
    assert found.dtype == torch.float32
    tolerance = 1e-5 if keeps_sums else 0.05
    torch.testing.assert_close(found, exact.logits(hidden.float()), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "gptj"])
def test_restricting_before_or_after_the_product_is_the_same(family: str) -> None:
    head = OutputHead.from_model(tiny_model(family))
    hidden, ids = torch.randn(2, 5, 32), torch.tensor([3, 50, 7])
    expected = head.logits(hidden)[..., ids]
    torch.testing.assert_close(head.logits(hidden, ids), expected)
    torch.testing.assert_close(head.restrict(ids).logits(hidden), expected)


@pytest.mark.parametrize("family", ["gemma2", "cohere", "phi", "granite"])
def test_state_round_trip_keeps_every_number(family: str) -> None:
    head = OutputHead.from_model(tiny_model(family))
    again = OutputHead.from_state(*head.state())
    assert (again.scale, again.softcap) == (head.scale, head.softcap)
    hidden = torch.randn(4, 32)
    assert torch.equal(again.logits(hidden), head.logits(hidden))


def test_families_differ_where_they_should() -> None:
    assert OutputHead.from_model(tiny_model("cohere")).scale == 0.5
    assert OutputHead.from_model(tiny_model("granite")).scale == 0.25
    assert OutputHead.from_model(tiny_model("gemma2")).softcap == 3.0
    assert OutputHead.from_model(tiny_model("phi")).bias is not None
    assert OutputHead.from_model(tiny_model("llama")).bias is None


def test_the_head_is_the_models_live_parameter_and_receives_gradient() -> None:
    model = tiny_model("gpt2")
    head = OutputHead.from_model(model)
    assert head.weight is model.transformer.wte.weight  # tied
    head.logits(torch.randn(2, 32)).sum().backward()
    assert model.transformer.wte.weight.grad is not None
    assert not head.detach().weight.requires_grad


def test_a_head_that_gives_other_logits_is_refused() -> None:
    model = tiny_model("granite")
    wrong = OutputHead(weight=model.get_output_embeddings().weight, scale=1.0)
    with pytest.raises(ModelError, match="GraniteForCausalLM: its logits differ"):
        check_output_head(model, wrong)


def test_a_model_without_a_linear_head_is_refused() -> None:
    with pytest.raises(ModelError, match="GPT2Model: its output head is no plain linear layer"):
        OutputHead.from_model(tiny_model("gpt2").transformer)
