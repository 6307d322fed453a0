"""The output head as a thing of its own: weight, bias, scaling and soft-cap, taken from a model or from a cache.

Distillation applies heads to states no model ever computed (centres of mass), to chosen rows of the vocabulary only,
and to a teacher that is long gone. So the head is found in the model once, with what its family does to the product
(Cohere multiplies, Granite divides, Gemma soft-caps, Phi and GPT-J add a bias), and `check_output_head` proves on a
probe that it gives the model's own logits: an unknown family is refused, never guessed.

Legend: D hidden size, V vocabulary, n chosen ids.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from sra_data.errors import ModelError
from sra_data.models.decoder import decoder_body, text_config, unwrap
from sra_data.models.placement import device_of_module, weight_of

HALVES = (torch.bfloat16, torch.float16)
CAN_KEEP_SUMS = torch.version.cuda is not None and "dtype" in torch.ops.aten.mm.overloads()  # torch 2.8, CUDA
# Of the bound of the logits, by family: Gemma 2 and later; RecurrentGemma; xLSTM.
SOFTCAP_NAMES = ("final_logit_softcapping", "logits_soft_cap", "output_logit_soft_cap")


@dataclass(frozen=True)
class OutputHead:
    """logits = softcap * tanh(scale * (hidden W^T + b) / softcap); without softcap, the inside alone.

    Attributes:
        weight: [V, D]; the model's live parameter where it came from a model.
        bias: [V] or None.
        scale: Factor on the product and its bias.
        softcap: Bound of the logits, or None.
    """

    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None

    @classmethod
    def from_model(cls, model: nn.Module) -> OutputHead:
        """The head of a causal language model, sharing its parameters (tied or not).

        Raises:
            ModelError: If the model has no linear output head, or a quantized one.
        """
        causal = unwrap(model)
        linear = causal.get_output_embeddings()
        weight = getattr(linear, "weight", None)
        if weight is None or weight.dim() != 2 or not weight.is_floating_point():
            raise ModelError(
                f"model class {type(causal).__name__}: its output head is no plain linear layer "
                f"({type(linear).__name__}); load it with an unquantized lm_head"
            )
        scale, softcap = _scaling_of(model)
        return cls(weight=weight_of(linear), bias=getattr(linear, "bias", None), scale=scale, softcap=softcap)

    @property
    def vocabulary_size(self) -> int:
        """V, padding rows included."""
        return int(self.weight.shape[0])

    def logits(self, hidden: Tensor, ids: Tensor | None = None) -> Tensor:
        """Next-token logits of states.

        Args:
            hidden: [..., D]; the product is computed in its dtype.
            ids: [n], the rows wanted; all where None. They are cut out before the product.

        Returns:
            [..., V] or [..., n], in the dtype of the product.
        """
        weight = self.weight if ids is None else self.weight[ids]
        bias = self.bias if self.bias is None or ids is None else self.bias[ids]
        product = nn.functional.linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))
        return self.finish(product)

    def float32_logits(self, hidden: Tensor) -> Tensor:
        """The logits [n, V] of states [n, D] in float32.

        On a GPU products of halves are added up in float32: here they stay so, instead of being rounded to a half on
        the way. With bfloat16 states (D = 2,048, V = 151,936) on an H100 that put the top id's log-probability 6e-6
        from the exact one, not 6e-3, in two thirds of the time.
        """
        if not _keeps_sums(hidden):
            return self.logits(hidden).float()
        product = _sums(hidden, self.weight.to(hidden.dtype))
        return self.finish(product if self.bias is None else product + self.bias.float())

    def finish(self, product: Tensor) -> Tensor:
        """What the family does to the product: scaling, then soft-cap."""
        if self.scale != 1.0:
            product = product * self.scale
        if self.softcap is not None:
            product = self.softcap * torch.tanh(product / self.softcap)
        return product

    def restrict(self, ids: Tensor) -> OutputHead:
        """The same head over `ids` [n] only; row j of the new one is row ids[j] of this."""
        bias = None if self.bias is None else self.bias.index_select(0, ids)
        return replace(self, weight=self.weight.index_select(0, ids), bias=bias)

    def to(self, *args: Any, **kwargs: Any) -> OutputHead:
        """Move or cast the tensors, as `Tensor.to`."""
        bias = None if self.bias is None else self.bias.to(*args, **kwargs)
        return replace(self, weight=self.weight.to(*args, **kwargs), bias=bias)

    def detach(self) -> OutputHead:
        """The same numbers without gradient (a frozen head)."""
        return replace(self, weight=self.weight.detach(), bias=None if self.bias is None else self.bias.detach())

    def state(self) -> tuple[dict[str, Tensor], dict[str, str]]:
        """Tensors and string metadata, as a safetensors file holds them."""
        tensors = {"weight": self.weight.detach().contiguous()}
        if self.bias is not None:
            tensors["bias"] = self.bias.detach().contiguous()
        metadata = {"scale": repr(self.scale), "softcap": "" if self.softcap is None else repr(self.softcap)}
        return tensors, metadata

    @classmethod
    def from_state(cls, tensors: dict[str, Tensor], metadata: dict[str, str]) -> OutputHead:
        """The head that `state` described."""
        softcap = metadata.get("softcap", "")
        return cls(
            weight=tensors["weight"],
            bias=tensors.get("bias"),
            scale=float(metadata.get("scale", "1.0")),
            softcap=float(softcap) if softcap else None,
        )


def _keeps_sums(hidden: Tensor) -> bool:
    """Whether the device adds products of these states up in float32 and can hand the sums over."""
    return hidden.is_cuda and hidden.dtype in HALVES and CAN_KEEP_SUMS


def _sums(hidden: Tensor, weight: Tensor) -> Tensor:
    """[n, D] x [V, D] -> [n, V] in float32, of halves."""
    return torch.mm(hidden, weight.T, out_dtype=torch.float32)


def _scaling_of(model: nn.Module) -> tuple[float, float | None]:
    """(scale, softcap) of a family: read from where its code reads them."""
    causal, config = unwrap(model), text_config(model)
    scale = 1.0
    if getattr(causal, "logit_scale", None) is not None:  # Cohere; MPT has it in its config and ignores it
        scale *= float(causal.logit_scale)
    logits_scaling = getattr(config, "logits_scaling", None)
    if logits_scaling:
        # HyperCLOVA X multiplies by what Granite and MiniCPM 3 divide by.
        scale = scale * logits_scaling if "hyperclovax" in config.model_type else scale / logits_scaling
    if getattr(config, "logits_mup_width_multiplier", None):
        scale /= config.logits_mup_width_multiplier
    for multiplier in ("lm_head_multiplier", "output_multiplier"):
        if getattr(config, multiplier, None):
            scale *= getattr(config, multiplier)
    caps = (getattr(config, name, None) for name in SOFTCAP_NAMES)
    softcap = next((cap for cap in caps if cap), None)
    return scale, float(softcap) if softcap else None


@torch.no_grad()
def check_output_head(model: nn.Module, head: OutputHead) -> None:
    """Prove on a short probe that `head` over the body's last states gives the model's own logits.

    Raises:
        ModelError: If it does not: the family does something to its logits that is not known here; or if they are none.
    """
    causal = unwrap(model)
    was_training = causal.training
    causal.eval()
    place = device_of_module(causal.get_input_embeddings())
    ids = torch.arange(3, 8, device=place)[None] % head.vocabulary_size
    try:
        expected = causal(input_ids=ids, use_cache=False).logits.float()
        hidden = decoder_body(model)(input_ids=ids, use_cache=False).last_hidden_state.to(head.weight.device)
        found = head.logits(hidden).float().to(expected.device)
    finally:
        causal.train(was_training)
    if not torch.isfinite(expected).all():
        raise ModelError(
            f"model class {type(causal).__name__}: its logits are NaN or infinite for five common ids: its weights "
            "are, or they overflow in this dtype; use a whole checkpoint, or fp32"
        )
    tolerance = 1e-4 if hidden.dtype == torch.float32 else 4e-2
    difference = float((expected - found).abs().max())
    if found.shape != expected.shape or not difference <= tolerance * max(1.0, float(expected.abs().max())):
        raise ModelError(
            f"model class {type(causal).__name__}: its logits differ by {difference:.3g} from its output head over its "
            "last hidden state; this family scales them in a way not known here, please report it"
        )
