"""Laws of capture: equal to the eager model's own outputs, whatever the batch; no lack of memory loses an example."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from sra_data.errors import ModelError
from sra_data.models.output_head import OutputHead
from sra_data.models.softcap import use_softcapped_sdpa
from sra_data.teacher.capture import Captured, Example, TeacherCapture
from sra_data.teacher.spec import CaptureOptions
from tests.model_zoo import ATTENTION_FAMILIES, tiny_model

OPTIONS = CaptureOptions(layers=(2, 3), hidden_dtype="fp32", top_k=5, top_k_dtype="fp32", logits_chunk_bytes=7 * 4 * 97)
LENGTHS = (11, 5, 9)


def examples() -> list[Example]:
    """Three examples; the positions of the last end before its last token."""
    generator = np.random.default_rng(1)
    ids = [generator.integers(3, 97, length, dtype=np.int32) for length in LENGTHS]
    positions = [np.arange(3, 11), np.array([0, 1, 4]), np.arange(2, 7)]
    return [Example(f"e{n}", i, p.astype(np.int32)) for n, (i, p) in enumerate(zip(ids, positions, strict=True))]


def eager_reference(family: str, example: Example) -> Captured:
    """What the eager model says about one example alone, read from its own outputs."""
    model = tiny_model(family, attn_implementation="eager")
    with torch.no_grad():
        output = model(
            input_ids=torch.from_numpy(example.ids)[None].long(), output_attentions=True, output_hidden_states=True
        )
    positions = torch.from_numpy(example.positions).long()
    log_probs = output.logits[0, positions].double().log_softmax(dim=-1)
    top = log_probs.topk(5, dim=-1)
    left = log_probs.scatter(-1, top.indices, -torch.inf)
    reference = Captured(example.id)
    for layer in (2, 3):
        row = output.attentions[layer - 1][0, :, -1].sum(dim=0)
        reference.attention[layer] = (row / row.sum())[positions].numpy()
        reference.hidden[layer] = output.hidden_states[layer][0, positions].numpy()
    reference.top_k_ids, reference.top_k_values = top.indices.numpy(), top.values.numpy()
    reference.log_tails = torch.stack([(left / t).logsumexp(dim=-1) for t in (1.0, 2.0)]).numpy()
    following = [p + 1 < len(example.ids) for p in example.positions]
    next_ids = [int(example.ids[p + 1]) if has else 0 for p, has in zip(example.positions, following, strict=True)]
    chosen = log_probs[torch.arange(len(next_ids)), torch.tensor(next_ids)].numpy()
    reference.next_log_prob = np.where(following, chosen, np.nan)
    return reference


@pytest.mark.parametrize("family", [family for family in ATTENTION_FAMILIES if family != "falcon_alibi"])
def test_a_padded_batch_says_what_the_eager_model_says_of_each_example_alone(family: str) -> None:
    model = tiny_model(family)
    use_softcapped_sdpa(model)
    for example, found in zip(examples(), TeacherCapture(model, OPTIONS)(examples()), strict=True):
        expected = eager_reference(family, example)
        assert found.is_finite
        for layer in (2, 3):
            np.testing.assert_allclose(found.attention[layer], expected.attention[layer], atol=1e-5)
            np.testing.assert_allclose(found.hidden[layer].float32(), expected.hidden[layer], atol=1e-5, rtol=1e-5)
        for name in ("top_k_values", "log_tails", "next_log_prob"):
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-5, rtol=1e-5)
        assert (found.top_k_ids == expected.top_k_ids).all()


def test_a_state_space_model_gives_states_and_logits_but_no_attention() -> None:
    model = tiny_model("mamba")
    with pytest.raises(ModelError, match="pooling=mean or pooling=last"):
        TeacherCapture(model, OPTIONS)
    options = CaptureOptions(layers=(2, 3), hidden_dtype="fp32", attention=False, top_k=5)
    for example, found in zip(examples(), TeacherCapture(model, options)(examples()), strict=True):
        with torch.no_grad():
            output = model(input_ids=torch.from_numpy(example.ids)[None].long(), output_hidden_states=True)
        # Mamba's own list leaves the embeddings out: its entry l is the output of block l (counted from 0).
        for layer, entry in ((2, 1), (3, 3)):
            states = output.hidden_states[entry][0, torch.from_numpy(example.positions).long()]
            np.testing.assert_allclose(found.hidden[layer].float32(), states, atol=1e-5, rtol=1e-5)
        assert found.attention == {}


def test_the_row_before_the_response_holds_the_first_response_tokens_probability() -> None:
    ids = np.arange(5, 13, dtype=np.int32)
    example = Example("e", ids, np.arange(2, 8, dtype=np.int32))  # the response is tokens 3 to 7
    model = tiny_model("llama")
    (found,) = TeacherCapture(model, OPTIONS)([example])
    with torch.no_grad():
        log_probs = model(input_ids=torch.from_numpy(ids)[None].long()).logits[0].log_softmax(dim=-1)
    assert found.next_log_prob[0] == pytest.approx(float(log_probs[2, ids[3]]), abs=1e-5)
    assert np.isnan(found.next_log_prob[-1])


@pytest.mark.parametrize("dtype", ["bf16", "fp16", "fp32", "int8"])
def test_stored_states_are_the_models_within_the_dtypes_rounding(dtype: str) -> None:
    options = CaptureOptions(layers=(3,), hidden_dtype=dtype, top_k=0)
    scales = {3: np.ones(32, np.float32)}
    (found, *_) = TeacherCapture(tiny_model("llama"), options, scales)(examples())
    (exact, *_) = TeacherCapture(tiny_model("llama"), OPTIONS)(examples())
    expected = exact.hidden[3].float32()
    tolerance = {"bf16": 2**-8, "fp16": 2**-11, "fp32": 0.0, "int8": 1 / 127}[dtype] * np.abs(expected).max()
    assert np.abs(found.hidden[3].float32() - expected).max() <= tolerance
    if dtype == "bf16":
        assert found.hidden[3].array.dtype == np.uint16


def test_no_hidden_states_and_no_top_k_where_none_are_asked() -> None:
    options = CaptureOptions(layers=(3,), hidden_dtype="none", attention=False, top_k=0)
    (found, *_) = TeacherCapture(tiny_model("llama"), options)(examples())
    assert found.hidden == {}
    assert found.top_k_ids is None
    assert found.next_log_prob.shape == (8,)


def test_a_lack_of_memory_halves_the_batch_and_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = TeacherCapture(tiny_model("llama"), OPTIONS)
    expected = capture(examples())
    whole = capture.capture

    def at_most_one(batch: list[Example]) -> list[Captured]:
        if len(batch) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return whole(batch)

    monkeypatch.setattr(capture, "capture", at_most_one)
    found = capture(examples())
    assert [one.id for one in found] == ["e0", "e1", "e2"]
    assert capture.num_splits == 2
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one.log_tails, other.log_tails, atol=1e-5)


def test_one_example_that_does_not_fit_is_named_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    capture = TeacherCapture(tiny_model("llama"), OPTIONS)

    def never(batch: list[Example]) -> list[Captured]:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")

    monkeypatch.setattr(capture, "capture", never)
    with pytest.raises(ModelError, match=r"example e0 \(11 tokens\): out of memory .* --max-length"):
        capture(examples())


def test_an_example_with_activations_that_are_no_numbers_is_marked_alone() -> None:
    model = tiny_model("llama")
    batch = examples()
    batch[1].ids[2] = 2  # the others hold ids from 3 on
    with torch.no_grad():
        model.get_input_embeddings().weight[2] = torch.nan
    assert [one.is_finite for one in TeacherCapture(model, OPTIONS)(batch)] == [True, False, True]


def test_too_large_a_top_k_is_refused() -> None:
    with pytest.raises(ModelError, match="--top-k 98: the teacher's vocabulary has 97 ids"):
        TeacherCapture(tiny_model("llama"), CaptureOptions(layers=(3,), top_k=98))


def test_the_last_layer_may_be_asked_for_by_that_word() -> None:
    capture = TeacherCapture(tiny_model("llama"), CaptureOptions(layers=("last", 1, "1"), hidden_dtype="fp32"))
    assert capture.options.layer_numbers == (1, 3)
    assert [sorted(one.hidden) for one in capture(examples())] == [[1, 3]] * 3
    with pytest.raises(ModelError, match="--layers 4: the teacher has layers 1 to 3"):
        TeacherCapture(tiny_model("llama"), CaptureOptions(layers=(4,)))


def test_the_head_never_sees_more_rows_than_a_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[int] = []
    original = OutputHead.logits

    def counted(self: OutputHead, hidden: torch.Tensor, ids: torch.Tensor | None = None) -> torch.Tensor:
        rows.append(len(hidden))
        return original(self, hidden, ids)

    monkeypatch.setattr(OutputHead, "logits", counted)
    TeacherCapture(tiny_model("llama"), OPTIONS)(examples())
    assert sum(rows) == 16
    assert max(rows) == 7


def test_bf16_states_are_rounded_once_from_the_models_own() -> None:
    """Not through fp16: that has no numbers above 65,504 or below 6e-8, and would round twice."""
    capture = TeacherCapture(tiny_model("llama"), CaptureOptions(layers=(3,), hidden_dtype="bf16", top_k=0))
    states = torch.tensor([[1e5, -3e38, 1e-10, 1 + 2**-8 + 2**-13, 0.1, 1e-40, 65_520.0]])
    found = capture._encode(3, states)
    assert torch.equal(torch.from_numpy(found.float32()), states.to(torch.bfloat16).float())
    capture.close()
