"""The body without a padding mask: real tokens do not notice, and the host does not wait."""

from __future__ import annotations

import pytest
import torch
from torch.torch_version import TorchVersion

from sra_data.models.attention import LastQueryAttention
from sra_data.models.decoder import decoder_body, decoder_layers
from sra_train.body import PACKING_CHECK, Body, needs_padding_mask
from tests.model_zoo import ATTENTION_FAMILIES, FAMILIES, tiny_model
from tests.waits import WaitCounter

LENGTHS = torch.tensor([13, 9, 4])
# Equal bit by bit, but where torch takes another kernel without a mask, as 2.7 does on a CPU.
ROUNDING = 0.0 if torch.__version__ >= TorchVersion("2.13") else 1e-5


def padded_batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Ids [3, 13] with padding on the right, and its mask."""
    mask = (torch.arange(13) < LENGTHS[:, None]).long()
    return torch.randint(3, 97, (3, 13), generator=torch.Generator().manual_seed(0)) * mask, mask


@torch.no_grad()
@pytest.mark.parametrize("family", FAMILIES)
def test_real_tokens_have_the_same_states_with_and_without_a_padding_mask(family: str) -> None:
    model = tiny_model(family)
    ids, mask = padded_batch()
    assert not needs_padding_mask(model)
    with_mask = decoder_body(model)(input_ids=ids, attention_mask=mask, use_cache=False, output_hidden_states=True)
    without = Body(model)(ids, LENGTHS, all_layers=True)
    for one, other in zip(with_mask.hidden_states, without.hidden_states, strict=True):
        assert float((one - other)[mask.bool()].abs().max()) <= ROUNDING


@torch.no_grad()
@pytest.mark.parametrize("family", ATTENTION_FAMILIES)
def test_the_last_real_tokens_attention_is_the_same_too(family: str) -> None:
    model = tiny_model(family)
    ids, mask = padded_batch()
    reader = LastQueryAttention.attach(model, [2, 3])
    with reader.capture(LENGTHS - 1) as with_mask:
        decoder_body(model)(input_ids=ids, attention_mask=mask, use_cache=False)
    with reader.capture(LENGTHS - 1) as without:
        Body(model)(ids, LENGTHS)
    for layer in (2, 3):
        torch.testing.assert_close(without[layer], with_mask[layer], rtol=0, atol=ROUNDING)


@torch.no_grad()
def test_a_body_that_looks_ahead_gets_its_mask() -> None:
    model = tiny_model("gemma3_text", use_bidirectional_attention=True)
    ids, mask = padded_batch()
    assert needs_padding_mask(model)
    expected = decoder_body(model)(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    assert torch.equal(Body(model)(ids, LENGTHS).last_hidden_state, expected)
    bare = decoder_body(model)(input_ids=ids, use_cache=False).last_hidden_state
    assert not torch.allclose(bare[mask.bool()], expected[mask.bool()])


def test_one_layer_that_looks_ahead_is_enough_and_so_is_a_configuration_that_says_so() -> None:
    causal, one_layer, said = (tiny_model("llama") for _ in range(3))
    decoder_layers(one_layer)[1].self_attn.is_causal = False
    said.config.is_causal = False
    assert [needs_padding_mask(model) for model in (causal, one_layer, said)] == [False, True, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_forward_and_its_backward_never_wait_for_the_device(family: str) -> None:
    model = tiny_model(family).train()
    body = Body(model)
    ids, _ = padded_batch()
    with WaitCounter() as waits:
        body(ids, LENGTHS).last_hidden_state.sum().backward()
    assert waits.found == {}


def test_what_transformers_was_told_is_taken_back() -> None:
    from transformers import masking_utils

    before = masking_utils.find_packed_sequence_indices
    assert before.__name__ == PACKING_CHECK  # no test before this one has left another there
    body = Body(tiny_model("llama"))
    body(torch.ones((1, 3), dtype=torch.int64), torch.tensor([3]))
    assert masking_utils.find_packed_sequence_indices is before
    with pytest.raises(IndexError):  # an id that there is not
        body(torch.full((1, 3), 97), torch.tensor([3]))
    assert masking_utils.find_packed_sequence_indices is before
