"""The student: what its forward hands over, which layers are adapted, which parameters decay."""

from dataclasses import replace

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    OPTConfig,
    Phi3Config,
)

from sra_data.errors import ConfigError, ModelError
from sra_data.models.decoder import decoder_layers
from sra_train.config import LoraConfig, StudentConfig
from sra_train.contract import Batch, MethodSetting, StepTotals, StudentNeeds
from sra_train.data.index_rows import label_rows
from sra_train.data.staging import StagingBuffer
from sra_train.methods import SFT
from sra_train.methods.base import method_type
from sra_train.methods.sft import SFTOptions
from sra_train.student import (
    StudentModel,
    add_lora,
    embedding_table,
    freeze,
    load_student,
    model_shape,
    parameter_groups,
    query_and_value_names,
)
from tests.model_zoo import tiny_model

SMALL = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
FAMILIES = {
    "llama": (LlamaConfig(**SMALL, num_key_value_heads=1), ("q_proj", "v_proj")),
    "opt": (
        OPTConfig(
            vocab_size=40,
            hidden_size=16,
            ffn_dim=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            word_embed_proj_dim=16,
        ),
        ("q_proj", "v_proj"),
    ),
    "gpt2": (GPT2Config(vocab_size=40, n_embd=16, n_layer=2, n_head=2, n_positions=64), ("c_attn",)),
    "gpt_neox": (GPTNeoXConfig(**SMALL), ("query_key_value",)),
    "phi3": (Phi3Config(**SMALL, pad_token_id=0), ("qkv_proj",)),
}


def tiny(family: str = "llama"):
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(FAMILIES[family][0]).eval()


def student(family: str = "llama") -> StudentModel:
    model = tiny(family)
    kind = method_type("sft")
    return StudentModel(model, kind(kind.options_type(), MethodSetting(student=model_shape(model))))


def batch(lengths=(6, 4)) -> Batch:
    width = max(lengths)
    generator = torch.Generator().manual_seed(1)
    input_ids = torch.randint(0, 40, (len(lengths), width), generator=generator)
    mask = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    labels = torch.where(mask & (torch.arange(width) > 1), input_ids, -100)
    return Batch(
        example_ids=[str(index) for index in range(len(lengths))],
        weight=torch.ones(len(lengths)),
        input_ids=input_ids * mask,
        labels=labels,
        lengths=torch.tensor(lengths),
        label_rows=label_rows("label_rows", labels.numpy(), StagingBuffer(pinned=False)),
    )


def padding_mask(data: Batch) -> torch.Tensor:
    return (torch.arange(data.input_ids.shape[1]) < data.lengths[:, None]).long()


@pytest.mark.parametrize("family", FAMILIES)
def test_cross_entropy_of_the_body_and_the_head_is_the_models_own_loss(family) -> None:
    one, data = student(family), batch()
    totals = StepTotals(labels=float((data.labels[:, 1:] != -100).sum()), examples=2.0)
    expected = one.model(input_ids=data.input_ids, attention_mask=padding_mask(data), labels=data.labels).loss
    torch.testing.assert_close(one(data, totals)["total"], expected, rtol=1e-5, atol=1e-6)


@torch.no_grad()
def test_nats_are_the_sum_over_the_asked_tokens() -> None:
    one, data = student(), batch()
    asked = data.labels != -100
    found = one(data, StepTotals(1.0, 2.0), data.label_rows)["nats"]
    log_probs = torch.log_softmax(one.model(data.input_ids, attention_mask=padding_mask(data)).logits.double(), -1)
    expected = [
        -sum(float(log_probs[row, n - 1, data.input_ids[row, n]]) for n in range(1, 6) if asked[row, n])
        for row in (0, 1)
    ]
    assert found.tolist() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_query_and_value_projections_are_found(family) -> None:
    assert query_and_value_names(tiny(family)) == FAMILIES[family][1]


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_a_fresh_adapter_changes_nothing_and_alone_is_trained(family) -> None:
    ids = torch.arange(6)[None]
    expected = tiny(family)(ids).logits
    adapted = add_lora(tiny(family), LoraConfig(r=2, dropout=0.0)).eval()
    torch.testing.assert_close(adapted(ids).logits, expected)
    assert all("lora" in name for name, parameter in adapted.named_parameters() if parameter.requires_grad)


def test_wrong_names_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"target_modules=\['q_porj'\]: the student has no such layer"):
        add_lora(tiny(), LoraConfig(target_modules=("q_porj",)))
    with pytest.raises(ConfigError, match=r"student\.freeze=transformer\.h: no parameter's name starts so"):
        freeze(tiny(), ["transformer.h"])


def test_matrices_decay_vectors_and_projectors_do_not() -> None:
    one = student("gpt2")
    one.method.register_parameter("projector", torch.nn.Parameter(torch.ones(3, 3)))
    groups = parameter_groups(one, learning_rate=1e-3, projector_learning_rate=2e-3, weight_decay=0.1)
    named = {group["name"]: group for group in groups}
    assert [named[name]["weight_decay"] for name in ("matrices", "vectors", "projectors")] == [0.1, 0.0, 0.0]
    assert [named[name]["peak"] for name in ("matrices", "vectors", "projectors")] == [1e-3, 1e-3, 2e-3]
    counted = sum(len(group["params"]) for group in groups)
    assert counted == len(list(one.parameters()))  # the tied head is counted once on both sides


def test_a_student_with_nothing_left_to_train_is_refused() -> None:
    one = student()
    freeze(one.model, ["model", "lm_head"])
    with pytest.raises(ConfigError, match="nothing of the student is left to train"):
        parameter_groups(one, learning_rate=1e-3, projector_learning_rate=1e-3, weight_decay=0.0)


@pytest.mark.parametrize("init", ["pretrained", "random"])
def test_an_encoder_with_a_decoder_is_no_student(tmp_path, init: str) -> None:
    config = BartConfig(
        vocab_size=40, d_model=16, encoder_layers=1, decoder_layers=1, encoder_attention_heads=2,
        decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16, max_position_embeddings=32,
    )  # fmt: skip
    BartForConditionalGeneration(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="bart is an encoder with a decoder, and its encoder would be left out"):
        load_student(str(tmp_path), StudentConfig(init=init))


def test_a_student_that_is_not_there_is_refused_in_one_line(tmp_path) -> None:
    with pytest.raises(ModelError, match=r"student .*nowhere: cannot be loaded") as caught:
        load_student(str(tmp_path / "nowhere"), StudentConfig())
    assert "\n" not in str(caught.value)


def test_new_weights_are_the_same_for_the_same_seed(tmp_path) -> None:
    FAMILIES["llama"][0].save_pretrained(tmp_path)
    one, same, other = (
        load_student(str(tmp_path), StudentConfig(init="random"), seed=seed).state_dict() for seed in (1, 1, 2)
    )
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_embeddings_are_handed_over_where_a_method_asks_for_them() -> None:
    one, data = student("gpt2"), batch()
    assert one.student_output(data).embeddings is None
    one.method = WithEmbeddings(SFTOptions(), MethodSetting(student=model_shape(one.model)))
    said = one.student_output(data)
    assert said.embeddings is not None
    assert not said.embeddings.requires_grad
    assert torch.equal(said.embeddings, one.model.transformer.wte.weight)
    assert said.embedding_scale == 1.0


def test_a_family_that_multiplies_its_embeddings_hands_over_by_what() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(GemmaConfig(**SMALL, num_key_value_heads=1, head_dim=8))
    assert embedding_table(model)[1] == pytest.approx(16**0.5)


def test_embeddings_of_another_width_than_the_head_are_refused() -> None:
    model = tiny("llama")
    model.set_input_embeddings(torch.nn.Embedding(40, 8))
    with pytest.raises(ModelError, match=r"its input embeddings are 8 wide, its output head reads 16"):
        StudentModel(model, WithEmbeddings(SFTOptions(), MethodSetting(student=model_shape(model))))


@pytest.mark.parametrize("family", ["llama", "mamba"])
def test_an_inner_layer_is_what_its_block_gives_whatever_the_family_lists(family) -> None:
    """State-space families leave the embeddings out of their list: it is one off."""
    model, data = tiny_model(family, vocab_size=40), batch()
    one = StudentModel(model, WithLayers(SFTOptions(), MethodSetting(student=model_shape(model))))
    given = []
    for block in decoder_layers(model):
        block.register_forward_hook(lambda _, inputs, output: given.append(output))
    hidden = one.student_output(data).hidden
    assert sorted(hidden) == [1, 2, 3]
    assert torch.equal(hidden[1], given[0])
    assert torch.equal(hidden[2], given[1])


def test_embeddings_that_a_family_does_not_list_are_no_layer() -> None:
    model = tiny_model("mamba")
    with pytest.raises(ModelError, match="student layer 0: MambaForCausalLM does not list its embeddings; choose 1"):
        StudentModel(model, WithEmbeddingLayer(SFTOptions(), MethodSetting(student=model_shape(model))))


def test_inner_layers_of_another_width_than_the_heads_are_refused() -> None:
    model = tiny_model("opt", word_embed_proj_dim=16)
    with pytest.raises(ModelError, match=r"student layer 1: OPTForCausalLM is 32 wide there, its output head reads 16"):
        StudentModel(model, WithLayers(SFTOptions(), MethodSetting(student=model_shape(model))))


class WithLayers(SFT):
    """Cross entropy, by a method that reads inner layers too."""

    @property
    def student_needs(self) -> StudentNeeds:
        return replace(super().student_needs, layers=(1, 2))


class WithEmbeddingLayer(SFT):
    """Cross entropy, by a method that reads the layer below the first block."""

    @property
    def student_needs(self) -> StudentNeeds:
        return replace(super().student_needs, layers=(0,))


class WithEmbeddings(SFT):
    """Cross entropy, by a method that asks for the student's embeddings."""

    @property
    def student_needs(self) -> StudentNeeds:
        return replace(super().student_needs, embeddings=True)


def test_a_layers_attention_is_that_of_the_last_real_token_whatever_stands_behind_it() -> None:
    model = tiny_model("llama", vocab_size=40)
    one, data = StudentModel(model, WithAttention(SFTOptions(), MethodSetting(student=model_shape(model)))), batch()
    together = one.student_output(data).attention[2]
    for row, length in enumerate(data.lengths.tolist()):
        with torch.no_grad():
            eager = tiny_model("llama", vocab_size=40, attn_implementation="eager")
            alone = eager(data.input_ids[row : row + 1, :length], output_attentions=True).attentions[1]
        torch.testing.assert_close(together[row, :length], alone[0, :, -1].mean(0), rtol=1e-5, atol=1e-6)
        assert not together[row, length:].any()


def test_in_mixed_precision_the_body_multiplies_in_16_bits_and_the_method_does_not() -> None:
    model = tiny_model("llama", vocab_size=40)
    setting, data = MethodSetting(student=model_shape(model)), batch()
    one = StudentModel(model, Watching(SFTOptions(), setting), torch.bfloat16)
    products: set[torch.dtype] = set()
    for module in one.body.module.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda _, inputs, output: products.add(output.dtype))
    total = one(data, StepTotals(labels=7.0, examples=2.0))["total"]
    assert products == {torch.bfloat16}
    assert one.method.seen == (torch.bfloat16, False)
    assert total.dtype == torch.float32
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    with torch.autocast("cpu", torch.bfloat16):
        expected = model.model(data.input_ids).last_hidden_state
    real = padding_mask(data).bool()
    assert torch.equal(one.student_output(data).hidden[3][real], expected.to(torch.bfloat16)[real])


class WithAttention(SFT):
    """Cross entropy, by a method that reads the attention of an inner layer too."""

    @property
    def student_needs(self) -> StudentNeeds:
        return replace(super().student_needs, attention_layers=(2,))


class Watching(SFT):
    """Cross entropy, by a method that remembers in what precision it was asked.

    Attributes:
        seen: of the last hidden states, and whether products would be made in 16 bits.
    """

    seen: tuple[torch.dtype, bool] | None = None

    def forward(self, output, batch, totals):
        self.seen = output.hidden[self.last_layer].dtype, torch.is_autocast_enabled("cpu")
        return super().forward(output, batch, totals)
