"""The norm between last block and head is found in every family, and states that came through it are known."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from sra_data.models.decoder import decoder_body, decoder_layers
from sra_data.models.final_norm import final_norm, is_normed
from tests.model_zoo import FAMILIES, tiny_model

IDS = torch.tensor([[3, 9, 27, 81, 50, 11, 33]])


def before_and_behind(model: Any) -> tuple[torch.Tensor, torch.Tensor]:
    """[N, D] what the last block gives, and the body's last hidden state."""
    given: list[torch.Tensor] = []
    handle = decoder_layers(model)[-1].register_forward_hook(
        lambda module, inputs, output: given.append(output[0] if isinstance(output, tuple) else output)
    )
    with torch.no_grad():
        behind = decoder_body(model)(input_ids=IDS, use_cache=False).last_hidden_state
    handle.remove()
    return given[0][0], behind[0]


@pytest.mark.parametrize("family", list(FAMILIES))
def test_the_final_norm_makes_the_last_hidden_state(family: str) -> None:
    model = tiny_model(family)
    norm = final_norm(model)
    before, behind = before_and_behind(model)
    with torch.no_grad():
        assert torch.equal(norm(before), behind)
    assert not torch.allclose(before, behind)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("family", list(FAMILIES))
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_that_came_through_the_norm_are_known(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 1 and name.endswith("weight"):  # trained norms are not all ones
            with torch.no_grad():
                parameter += torch.linspace(-0.7, 0.9, len(parameter))
    norm = final_norm(model)
    before, behind = before_and_behind(model)
    assert is_normed(norm, behind)
    assert not is_normed(norm, before)


def test_a_body_without_a_norm_has_an_identity() -> None:
    model: Any = tiny_model("llama")
    model.model.norm = nn.Identity()
    assert isinstance(final_norm(model), nn.Identity)
    assert not is_normed(nn.Identity(), torch.ones(3, 8))
