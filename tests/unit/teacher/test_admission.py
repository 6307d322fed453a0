"""Laws of admission: a teacher of which no true pages can be made is refused in one line; ordinary ones are not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, BartConfig

from sra_data.errors import ModelError
from sra_data.models.decoder import length_border, states_offset
from sra_data.models.softcap import use_softcapped_sdpa
from sra_data.teacher.admission import Probe, admit, difference, noise_limit, refuse_config, rows_to_probe, states_apart
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.spec import CaptureOptions
from tests.model_zoo import COMMON, FAMILIES, tiny_model

LENGTHS = (5, 12, 40)
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
}


def rows(lengths: tuple[int, ...] = LENGTHS) -> list[np.ndarray[Any, np.dtype[np.int32]]]:
    generator = np.random.default_rng(0)
    return [generator.integers(3, 97, length).astype(np.int32) for length in lengths]


def probe(model: nn.Module, *, lengths: tuple[int, ...] = LENGTHS, **options: Any) -> Probe:
    kept = CaptureOptions(**{"layers": (2, 3), **options}).resolved(3)
    return Probe("t", model, kept, rows(lengths), np.arange(3, 97, dtype=np.int32))


def refusal(asked: Probe) -> str:
    with pytest.raises(ModelError) as raised:
        admit(asked)
    assert "\n" not in str(raised.value)
    return str(raised.value)


def changed(model: nn.Module, name: str, change: Callable[..., Any]) -> nn.Module:
    """The model with what module `name` gives changed by `change(inputs, output)`."""
    model.get_submodule(name).register_forward_hook(lambda _, inputs, output: change(inputs[0], output))
    return model


def phi3_with_long_rope() -> nn.Module:
    positions = {"max_position_embeddings": 64, "original_max_position_embeddings": 16}
    return tiny_model("phi3", **positions, rope_parameters=LONG_ROPE)


# ---------------------------------------------------------------------------------------------------------- admitted


@pytest.mark.parametrize("family", [family for family in FAMILIES if family not in ("mamba", "falcon_alibi")])
def test_ordinary_families_are_admitted(family: str) -> None:
    model = tiny_model(family)
    use_softcapped_sdpa(model)
    admit(probe(model))


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_no_reason_to_refuse(family: str, dtype: torch.dtype) -> None:
    model = tiny_model(family).to(dtype)
    use_softcapped_sdpa(model)
    admit(probe(model))


@pytest.mark.filterwarnings("ignore::FutureWarning")  # peft reads names that transformers renamed
def test_an_adapter_that_is_not_merged_is_admitted() -> None:
    peft = pytest.importorskip("peft")
    admit(probe(peft.get_peft_model(tiny_model("llama"), peft.LoraConfig(r=2, target_modules=["q_proj"])).eval()))


def test_a_state_space_teacher_is_admitted_without_attention() -> None:
    admit(probe(tiny_model("mamba"), attention=False))


def test_rows_of_one_length_and_a_single_short_one_are_enough_to_ask() -> None:
    for lengths in ((9,), (7, 7), (1, 2), (1,)):
        admit(probe(tiny_model("llama"), lengths=lengths))


def test_admission_leaves_the_model_as_it_was() -> None:
    model = tiny_model("llama")
    before = model(torch.arange(3, 9)[None]).logits
    admit(probe(model))
    assert torch.equal(model(torch.arange(3, 9)[None]).logits, before)
    assert model.config._attn_implementation == "sdpa"
    admit(probe(model))  # whose attention is read by nobody else


# ----------------------------------------------------------------------------------------------------------- refused


def test_an_encoder_with_a_decoder_is_refused_from_its_configuration() -> None:
    with pytest.raises(ModelError, match="teacher t: bart is an encoder with a decoder, and its encoder would be left"):
        refuse_config("t", BartConfig())
    refuse_config("t", tiny_model("llama").config)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    config = AutoConfig.for_model(
        "bert", **COMMON, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, intermediate_size=48
    )
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.normal_(0.0, 0.2)
    assert "teacher t: not causal, what it says at a position differs by" in refusal(probe(model))
    config.is_decoder = True
    assert AutoModelForCausalLM.from_config(config).config.is_decoder


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_one_layer_that_sees_one_token_ahead_is_enough(layer: int) -> None:
    def look(_: torch.Tensor, output: Any) -> Any:
        states = output[0] if isinstance(output, tuple) else output
        states = states + 0.05 * torch.roll(states, -1, dims=1)
        return (states, *output[1:]) if isinstance(output, tuple) else states

    assert "not causal" in refusal(probe(changed(tiny_model("llama"), f"model.layers.{layer}", look)))


def test_a_teacher_whose_rows_depend_on_the_longest_of_their_batch_is_refused_unless_each_is_alone() -> None:
    def stretched(_: torch.Tensor, output: Any) -> Any:
        cosine, sine = output
        return cosine * (1 + 0.05 * (cosine.shape[1] > 16)), sine

    asked = probe(changed(tiny_model("llama"), "model.rotary_emb", stretched))
    message = refusal(asked)
    assert "what it says of an example of 5 tokens differs by" in message
    assert "beside one of 40 in its batch (limit 0.001); let it read each alone, with --batch-tokens 1" in message
    admit(replace(asked, is_batched=False))


def test_dynamic_rope_is_refused_where_rows_go_beyond_its_positions_and_only_there() -> None:
    """Beyond them its frequencies follow the longest row of the batch, and of the batches before."""
    dynamic = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0}
    asked = probe(tiny_model("llama", max_position_embeddings=16, rope_parameters=dynamic))
    assert "beside one of 40 in its batch" in refusal(asked)
    beyond = replace(probe(asked.model, lengths=(5, 20, 40)), is_batched=False)
    assert "of one example (20 tokens) differs by" in refusal(beyond)
    admit(probe(tiny_model("llama", max_position_embeddings=40, rope_parameters=dynamic)))


def test_attention_that_differs_in_a_batch_is_refused_though_states_agree() -> None:
    one, other = Captured("a"), Captured("a")
    one.attention[3], other.attention[3] = np.array([0.5, 0.3], np.float32), np.array([0.5, 0.5], np.float32)
    assert difference(one, other) == pytest.approx(0.2)


def test_log_probabilities_that_differ_are_a_difference_relative_to_their_size_or_a_nat() -> None:
    nan = np.nan
    for ours, theirs, expected in (([-0.1, nan], [-0.3, nan], 0.2 / 1), ([-4.0, -4.0], [-5.0, -5.0], 0.25)):
        one, other = Captured("a"), Captured("a")
        one.next_log_prob, other.next_log_prob = np.array(ours, np.float32), np.array(theirs, np.float32)
        assert difference(one, other) == pytest.approx(expected)
    other.is_finite = False
    assert difference(one, other) == 0


def test_an_outlier_channel_and_an_outlier_position_hide_no_difference() -> None:
    generator = np.random.default_rng(0)
    ours = generator.normal(size=(20, 16)).astype(np.float32)
    theirs = ours + 0.3 * generator.normal(size=ours.shape).astype(np.float32)
    for states in (ours, theirs):
        states[:, 3], states[0] = 1e4, 1e5
    assert states_apart(ours, theirs) > 0.1
    assert states_apart(ours, ours) == 0


def test_a_teacher_with_a_memory_of_what_it_read_is_refused() -> None:
    longest = [0]

    def grown(_: torch.Tensor, output: Any) -> Any:
        longest[0] = max(longest[0], output[0].shape[1])
        return output[0] * (1 + 0.01 * longest[0]), output[1]

    message = refusal(replace(probe(changed(tiny_model("llama"), "model.rotary_emb", grown)), is_batched=False))
    assert "of one example (12 tokens) differs by" in message
    assert "when asked again after a longer one (limit 0.001); use a model without state" in message


@pytest.mark.parametrize(("family", "field"), [("gpt2", "n_positions"), ("opt", "max_position_embeddings")])
def test_fewer_positions_than_the_longest_example_are_said_with_both_numbers(family: str, field: str) -> None:
    message = refusal(probe(tiny_model(family, **{field: 23})))
    assert "teacher t: the longest example has 40 tokens, it reads 23 (" in message
    assert "; run `sra-data align` with --teacher t and --teacher-max-length 23, which adds a side" in message
    admit(probe(tiny_model(family, **{field: 40})))


def test_activations_that_are_no_numbers_on_every_row_are_refused() -> None:
    model = tiny_model("llama")
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    assert "NaN or infinite on all 3 examples it was tried with; try --dtype" in refusal(probe(model))
    assert noise_limit(torch.float32) < noise_limit(torch.float16) < noise_limit(torch.bfloat16)


def test_inner_layers_of_another_width_than_the_heads_are_refused_and_the_last_alone_is_not() -> None:
    model = tiny_model("opt", word_embed_proj_dim=16)
    message = refusal(probe(model))
    assert "--layers 2: the teacher's states there are 32 wide, its output head reads 16" in message
    assert message.endswith("keep the last layer alone, with --layers last")
    admit(probe(model, layers=("last",)))


# --------------------------------------------------------------------------------------- the parts the laws stand on


def test_a_batch_is_cut_where_long_rows_would_change_short_ones() -> None:
    """Two sets of frequencies, by the longest row of a batch: rows on one side of the border are never with others."""
    model = phi3_with_long_rope()
    assert length_border(model) == 16
    assert length_border(tiny_model("llama")) is None
    admit(probe(model))
    options = CaptureOptions(layers=(3,), hidden_dtype="fp32", top_k=0)
    capture = TeacherCapture(model, options)
    examples = [Example(str(len(row)), row, np.arange(len(row), dtype=np.int32)) for row in rows((5, 40, 16, 17))]
    alone = [capture([example])[0] for example in examples]
    together = capture(examples)
    assert [one.id for one in together] == [example.id for example in examples]
    assert max(difference(one, other) for one, other in zip(alone, together, strict=True)) < 1e-5
    assert capture.num_splits == 0  # nothing was split for memory
    mixed = capture.capture(examples)  # as it would be without the cut
    assert difference(alone[0], mixed[0]) > 0.01


def test_inner_layers_are_found_where_a_family_lists_them() -> None:
    assert {family: states_offset(tiny_model(family)) for family in ("llama", "gpt2", "opt", "mamba")} == {
        "llama": 0,
        "gpt2": 0,
        "opt": 0,
        "mamba": -1,
    }


def test_blocks_whose_outputs_are_not_listed_are_refused_for_inner_layers() -> None:
    model = tiny_model("llama")
    inner = model.model.forward

    def renumbered(**inputs: Any) -> Any:
        output = inner(**inputs)
        if output.hidden_states is not None:
            output.hidden_states = tuple(2 * states for states in output.hidden_states)
        return output

    model.model.forward = renumbered
    for layers in ((2, 3), (2,)):
        assert "inner layers cannot be told apart; use the last layer alone" in refusal(probe(model, layers=layers))
    admit(probe(model, layers=("last",)))


def test_the_shortest_the_median_and_the_longest_example_are_asked_about() -> None:
    assert rows_to_probe([0, 7, 3, 0, 9, 5]) == [2, 1, 4]
    assert rows_to_probe([4, 0]) == [0]
    assert rows_to_probe([0, 0]) == []
