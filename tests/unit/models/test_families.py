"""Families whose parts have names of their own: found like the others', proved like the others'."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sra_data.errors import ModelError
from sra_data.models.decoder import body_name, decoder_body, decoder_layers, unwrap
from sra_data.models.output_head import OutputHead, check_output_head
from sra_data.teacher.admission import Probe, admit
from sra_data.teacher.capture import Example, TeacherCapture
from sra_data.teacher.loading import load
from sra_data.teacher.spec import CaptureOptions, TeacherSpec
from tests.model_zoo import UNUSUAL_FAMILIES, tiny_model

IDS = np.arange(3, 40, dtype=np.int32)
ATTEND = {"llama4_text"}  # in every block


@pytest.fixture(scope="module", params=UNUSUAL_FAMILIES)
def opened(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory):
    """A family, and its teacher as the command opens it from a folder."""
    folder = tmp_path_factory.mktemp(request.param)
    tiny_model(request.param).save_pretrained(folder)
    return request.param, load(TeacherSpec(str(folder), device="cpu", dtype="fp32")).model


def test_the_head_over_the_bodys_last_states_gives_the_models_logits(opened) -> None:
    _, model = opened
    with torch.no_grad():
        expected = model(input_ids=torch.from_numpy(IDS)[None].long(), use_cache=False).logits
        states = decoder_body(model)(input_ids=torch.from_numpy(IDS)[None].long(), use_cache=False)[0]
    head = OutputHead.from_model(model)
    torch.testing.assert_close(head.logits(states), expected, atol=1e-5, rtol=1e-5)
    check_output_head(model, head)


def test_a_soft_cap_is_found_by_whatever_name_the_family_gives_it() -> None:
    caps = {family: OutputHead.from_model(tiny_model(family)).softcap for family in UNUSUAL_FAMILIES}
    assert caps == {"llama4_text": None, "recurrent_gemma": 3.0, "xlstm": 2.0}


def test_such_a_teacher_is_admitted_and_captured(opened) -> None:
    family, model = opened
    options = CaptureOptions(layers=(1, 3), hidden_dtype="fp32", attention=family in ATTEND, top_k=3).resolved(3)
    admit(Probe(family, model, options, [IDS[:9], IDS[:20], IDS], IDS))
    capture = TeacherCapture(model, options)
    (said,) = capture([Example("one", IDS, np.arange(len(IDS), dtype=np.int32))])
    capture.close()
    with torch.no_grad():
        output = model(input_ids=torch.from_numpy(IDS)[None].long(), use_cache=False, output_hidden_states=True)
    log_probs = output.logits[0].float().log_softmax(-1)
    expected = log_probs[torch.arange(len(IDS) - 1), torch.from_numpy(IDS[1:]).long()].numpy()
    assert said.next_log_prob is not None
    np.testing.assert_allclose(said.next_log_prob[:-1], expected, atol=1e-4)
    assert said.hidden[1].float32().shape == said.hidden[3].float32().shape == (len(IDS), 32)
    for mass in said.attention.values():
        np.testing.assert_allclose(mass.sum(), 1.0, atol=1e-5)


def test_a_checkpoint_with_more_in_its_body_is_refused_here_too(tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tiny_model("llama4_text").save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = next(name for name in tensors if name.endswith("layers.0.input_layernorm.weight"))
    tensors[name.replace("layers.0", "layers.7")] = tensors[name].clone()
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match="1 tensors of a body or head that Llama4ForCausalLM has no place for"):
        load(TeacherSpec(str(tmp_path), device="cpu", dtype="fp32"))


def test_the_text_model_inside_one_that_sees_images_is_found_too() -> None:
    text = tiny_model("llama4_text")

    class Around(torch.nn.Module):
        """As Llama4ForConditionalGeneration is built: its prefix names nothing that it has."""

        base_model_prefix = "model"

        def __init__(self) -> None:
            super().__init__()
            self.vision_model = torch.nn.Linear(2, 2)
            self.language_model = text
            self.config = text.config

    model = Around()
    assert body_name(model) == "language_model.model"
    assert decoder_body(model) is text.model
    assert decoder_layers(model) is text.model.layers
    assert unwrap(model) is model
