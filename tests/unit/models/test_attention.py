"""Laws of the last-query attention row: equal to eager's, whatever the family, the padding and the mode."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sra_data.errors import ModelError
from sra_data.models.attention import LastQueryAttention
from sra_data.models.attention_row import last_query_row
from sra_data.models.decoder import check_layers, input_embeddings
from sra_data.models.softcap import use_softcapped_sdpa
from tests.model_zoo import ATTENTION_FAMILIES, tiny_model

LENGTHS = torch.tensor([11, 5, 9])
WIDTH = 11
LAYERS = (1, 2, 3)


def padded_batch(side: str) -> tuple[Tensor, Tensor, Tensor]:
    """ids [3, 11], attention mask [3, 11], query index [3] for examples of 11, 5 and 9 tokens."""
    ids = torch.randint(3, 97, (3, WIDTH), generator=torch.Generator().manual_seed(1))
    positions = torch.arange(WIDTH)[None]
    if side == "right":
        mask, query_index = positions < LENGTHS[:, None], LENGTHS - 1
    else:
        mask, query_index = positions >= WIDTH - LENGTHS[:, None], torch.full((3,), WIDTH - 1)
    return ids * mask, mask.long(), query_index


def rows_of(attention: Tensor, query_index: Tensor) -> Tensor:
    """[B, H, N, N] map -> [B, N]: the query's row, summed over heads, normalised."""
    row = attention[torch.arange(len(query_index)), :, query_index].sum(dim=1)
    return row / row.sum(dim=-1, keepdim=True)


def explicit_sdpa(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options) -> Tensor:
    """scaled_dot_product_attention as a formula, which keeps its map in `explicit_sdpa.maps`."""
    scores = query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5
    attended = torch.softmax(scores + attn_mask, dim=-1)
    explicit_sdpa.maps.append(attended)
    return attended @ value


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("family", [family for family in ATTENTION_FAMILIES if family != "falcon_alibi"])
def test_rows_states_and_logits_equal_the_eager_models(family: str, side: str) -> None:
    ids, mask, query_index = padded_batch(side)
    real = mask.bool()
    eager = tiny_model(family, attn_implementation="eager")
    with torch.no_grad():
        expected = eager(input_ids=ids, attention_mask=mask, output_attentions=True, output_hidden_states=True)
    model = tiny_model(family)
    use_softcapped_sdpa(model)
    reader = LastQueryAttention.attach(model, LAYERS)
    with reader.capture(query_index) as rows, torch.no_grad():
        found = model(input_ids=ids, attention_mask=mask, output_hidden_states=True)
    for layer in LAYERS:
        torch.testing.assert_close(rows[layer], rows_of(expected.attentions[layer - 1], query_index), atol=1e-5, rtol=0)
        assert rows[layer].dtype == torch.float32
        hidden, expected_hidden = found.hidden_states[layer], expected.hidden_states[layer]
        torch.testing.assert_close(hidden[real], expected_hidden[real], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found.logits[real], expected.logits[real], atol=1e-5, rtol=1e-5)


def test_falcon_with_alibi_shows_what_its_sdpa_call_attends_to(monkeypatch: pytest.MonkeyPatch) -> None:
    # Its eager path adds ALiBi twice (once inside the mask), so eager is no reference: the SDPA call itself is.
    ids, mask, query_index = padded_batch("right")
    model = tiny_model("falcon_alibi")
    reader = LastQueryAttention.attach(model, LAYERS)
    with reader.capture(query_index) as rows, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    reader.detach()
    explicit_sdpa.maps = []
    monkeypatch.setattr(torch.nn.functional, "scaled_dot_product_attention", explicit_sdpa)
    with torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    for layer in LAYERS:
        torch.testing.assert_close(rows[layer], rows_of(explicit_sdpa.maps[layer - 1], query_index), atol=1e-5, rtol=0)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "gpt2", "falcon", "bloom", "opt"])
def test_without_a_mask_right_padding_changes_no_row(family: str) -> None:
    ids, mask, query_index = padded_batch("right")
    model = tiny_model(family)
    use_softcapped_sdpa(model)
    reader = LastQueryAttention.attach(model, LAYERS)
    with reader.capture(query_index) as masked, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    with reader.capture(query_index) as unmasked, torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for layer in LAYERS:
        torch.testing.assert_close(masked[layer], unmasked[layer], atol=1e-5, rtol=0)
        assert (unmasked[layer][~mask.bool()] == 0).all()


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom", "gemma2"])
def test_attaching_changes_no_output_and_detaching_leaves_no_trace(family: str) -> None:
    ids, mask, query_index = padded_batch("right")
    model = tiny_model(family)
    implementation = model.config._attn_implementation
    attributes = {name: set(vars(module)) for name, module in model.named_modules()}
    plain = model(input_ids=ids, attention_mask=mask).logits
    reader = LastQueryAttention.attach(model, LAYERS)
    with reader.capture(query_index):
        captured = model(input_ids=ids, attention_mask=mask).logits
    assert torch.equal(plain, captured)
    assert torch.equal(plain, model(input_ids=ids, attention_mask=mask).logits)
    reader.detach()
    assert model.config._attn_implementation == implementation
    assert {name: set(vars(module)) for name, module in model.named_modules()} == attributes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


@pytest.mark.parametrize("family", ["llama", "gpt2", "bloom"])
def test_training_with_checkpointing_gives_the_row_without_dropout_and_the_plain_gradient(family: str) -> None:
    ids, mask, query_index = padded_batch("right")
    dropout = {"llama": {"attention_dropout": 0.5}, "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.0, "embd_pdrop": 0.0}}
    model = tiny_model(family, **dropout.get(family, {"attention_dropout": 0.5}))
    reader = LastQueryAttention.attach(model, (1,))
    with reader.capture(query_index) as expected, torch.no_grad():
        model(input_ids=ids, attention_mask=mask)
    model.train()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            # Renamed within transformers 5.
            enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
            enable()
        model.zero_grad()
        torch.manual_seed(3)
        with reader.capture(query_index) as rows:
            logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
            logits[mask.bool()].logsumexp(dim=-1).sum().backward()
        # The first layer sees no dropout before it in these families, so its row is the eval row.
        torch.testing.assert_close(rows[1], expected[1], atol=1e-6, rtol=0)
        assert not rows[1].requires_grad
        gradients.append([parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler looks at tensors that are no leaves
@pytest.mark.parametrize("family", ["llama", "falcon"])
def test_a_compiled_student_shows_the_same_rows(family: str) -> None:
    ids, mask, query_index = padded_batch("right")
    model = tiny_model(family, num_hidden_layers=2)
    reader = LastQueryAttention.attach(model, (2,))
    with reader.capture(query_index) as expected, torch.no_grad():
        model(input_ids=ids, attention_mask=mask, use_cache=False)
    model.train()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="aot_eager")
    with reader.capture(query_index) as rows:
        compiled(input_ids=ids, attention_mask=mask, use_cache=False).logits.sum().backward()
    torch.testing.assert_close(rows[2], expected[2], atol=1e-6, rtol=0)
    torch._dynamo.reset()


def test_softcapped_blocks_have_eagers_gradient() -> None:
    ids, mask, _ = padded_batch("right")
    gradients = []
    for swapped in (False, True):
        model = tiny_model("gemma2", attn_implementation="eager").train()
        if swapped:
            assert use_softcapped_sdpa(model)
        model(input_ids=ids, attention_mask=mask, use_cache=False).logits[mask.bool()].logsumexp(-1).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, found in zip(*gradients, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


def test_sinks_take_mass_but_are_no_position() -> None:
    query, key, sinks = torch.randn(1, 2, 4, 8), torch.randn(1, 1, 4, 8), torch.tensor([1.0, -1.0])
    row = last_query_row(nn.Identity(), query, key, None, torch.tensor([3]), s_aux=sinks)
    scores = torch.cat([(query[0, :, 3] @ key[0, 0].T) * 8**-0.5, sinks[:, None]], dim=1)
    expected = torch.softmax(scores, dim=1)[:, :4].sum(0)
    torch.testing.assert_close(row[0], expected / expected.sum())


def test_float_masks_of_one_row_for_the_batch_are_honoured() -> None:
    query, key = torch.randn(2, 2, 3, 8), torch.randn(2, 2, 3, 8)
    mask = torch.tensor([[[[0.0, -torch.inf, -torch.inf], [0.0, 0.0, -torch.inf], [-torch.inf, 0.0, 0.0]]]])
    row = last_query_row(nn.Identity(), query, key, mask, torch.tensor([2, 1]))
    assert row[0, 0] == 0
    assert row[1, 2] == 0
    torch.testing.assert_close(row.sum(dim=1), torch.ones(2))


def test_a_model_without_attention_is_refused_with_the_remedy() -> None:
    with pytest.raises(ModelError, match=r"layer 3 of MambaForCausalLM: .*pooling=mean or pooling=last"):
        LastQueryAttention.attach(tiny_model("mamba"), (3,))


def test_a_module_that_shows_no_softmax_is_refused_after_the_forward() -> None:
    ids, _, query_index = padded_batch("right")
    model = tiny_model("llama")
    reader = LastQueryAttention.attach(model, (2,))
    with pytest.raises(ModelError, match=r"layers \[2\] .*pooling=mean"), reader.capture(query_index):
        model.model.embed_tokens(ids)


@pytest.mark.parametrize("layer", [0, 4, -1])
def test_a_layer_out_of_range_is_refused(layer: int) -> None:
    with pytest.raises(ModelError, match=f"layer {layer}: LlamaForCausalLM has layers 1 to 3"):
        check_layers(tiny_model("llama"), (layer,))


def test_two_readers_of_one_layer_are_refused() -> None:
    model = tiny_model("llama")
    LastQueryAttention.attach(model, (2,))
    with pytest.raises(ModelError, match=r"layer 2: .*detach the earlier reader"):
        LastQueryAttention.attach(model, (1, 2))


def test_attached_models_save_and_load_as_plain_folders(tmp_path) -> None:
    from transformers import AutoModelForCausalLM

    model = tiny_model("llama")
    LastQueryAttention.attach(model, (3,))
    model.save_pretrained(tmp_path)
    assert "last_query" not in (tmp_path / "config.json").read_text()
    assert AutoModelForCausalLM.from_pretrained(tmp_path).config._attn_implementation == "sdpa"


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3_text", "granite", "cohere"])
def test_input_embeddings_times_their_scale_are_the_first_hidden_states(family: str) -> None:
    ids, _, _ = padded_batch("right")
    model = tiny_model(family)
    with torch.no_grad():
        expected = model(input_ids=ids, output_hidden_states=True).hidden_states[0]
    embeddings = input_embeddings(model)
    torch.testing.assert_close(embeddings.weight[ids] * embeddings.scale, expected)
    assert embeddings.is_tied == model.config.tie_word_embeddings
