"""The router loss of a mixture of experts: what keeps its router from sending every token to the same few experts.

    router  =  E sum over experts e of  f_e p_e             k where the load is even, E at worst
    f_e: how often e is among a token's k experts, p_e: the router's mean probability of e; over tokens and layers

It is computed by transformers' own function for the family, from the router logits of the body, padding left out, and
weighs as much as the model's configuration says. Before training it is asked once of a few ids and compared with what
the whole model answers; a family that answers with none is refused, because its router would drift unseen.

It is a product of means over tokens, and so the one term that micro-batches do not add up to exactly: a step's value is
the mean of its micro-batches', weighted by their examples (docs/method.md, section 5).

Legend: B examples, N tokens, E experts.
"""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError, ModelError
from sra_data.models.decoder import decoder_body, text_config, unwrap
from sra_train.body import Body

FUNCTION = "load_balancing_loss_func"  # of the family's module; with these arguments
ARGUMENTS = ("gate_logits", "num_experts", "top_k", "attention_mask")
COEFFICIENTS = ("router_aux_loss_coef", "aux_loss_coef")
EXPERTS = re.compile(r"(Experts|Router|Gating|MoEGate|SparseMoeBlock|MoE)$")  # how their classes' names end
TOLERANCE = 1e-4  # relative, of two ways to the same few numbers
WITHOUT = "set training.router_loss=0 to train it without one, or choose another student"


@dataclass(frozen=True)
class RouterLoss:
    """The router loss of one family.

    Attributes:
        function: transformers' own.
        num_experts: E.
        top_k: experts of a token.
        coefficient: its weight in the loss.
    """

    function: Callable[..., Any]
    num_experts: int
    top_k: int
    coefficient: float

    def __call__(self, router_logits: Sequence[Tensor], lengths: Tensor, weight: Tensor, width: int) -> Tensor:
        """Of one micro-batch, without the coefficient; a scalar with gradient.

        Args:
            router_logits: [B x N, E] of every layer with experts.
            lengths: [B] tokens that are no padding.
            weight: [B] 0 for rows that only fill the batch; where all do, they count alike and the caller drops it.
            width: N.
        """
        counted = torch.maximum(weight, 1 - weight.amax())  # [B]
        mask = (torch.arange(width, device=lengths.device) < lengths[:, None]) * counted[:, None]
        value: Tensor = self.function(tuple(router_logits), self.num_experts, self.top_k, mask)
        return value


def has_experts(model: nn.Module) -> bool:
    """Whether any block of the model is a mixture of experts."""
    return any(EXPERTS.search(type(module).__name__) for module in decoder_body(model).modules())


def router_loss_of(model: nn.Module, coefficient: float | None, *, who: str) -> RouterLoss | None:
    """The router loss a student is trained with; None for a dense student, and where the coefficient is 0.

    Args:
        model: on the CPU, whole.
        coefficient: of the configuration; None for the model's own.
        who: "student X", for messages.

    Raises:
        ConfigError: If a dense student is given a coefficient.
        ModelError: If transformers gives no such loss for the family, or one of another kind.
    """
    if not has_experts(model):
        if coefficient:
            raise ConfigError(f"training.router_loss={coefficient:g}: {who} has no router; leave it out")
        return None
    if coefficient == 0:
        return None
    causal = unwrap(model)
    function = getattr(sys.modules[type(causal).__module__], FUNCTION, None)
    num_experts, top_k = getattr(causal, "num_experts", None), getattr(causal, "num_experts_per_tok", None)
    own = coefficient_in(causal)
    if function is None or not takes_what_is_known(function) or num_experts is None or top_k is None or own is None:
        raise ModelError(
            f"{who}: {type(causal).__name__} is a mixture of experts, and no router loss of its family is known here;"
            f" {WITHOUT}"
        )
    loss = RouterLoss(function, int(num_experts), int(top_k), own if coefficient is None else coefficient)
    return prove(model, loss, who=who) if loss.coefficient else None


def takes_what_is_known(function: Callable[..., Any]) -> bool:
    """Whether a family's function has the usual arguments; Doge's, say, has others."""
    return tuple(inspect.signature(function).parameters) == ARGUMENTS


def coefficient_in(causal: Any) -> float | None:
    """What the model's authors weigh the loss with."""
    for place in (causal, text_config(causal)):
        for name in COEFFICIENTS:
            if isinstance(value := getattr(place, name, None), int | float):
                return float(value)
    return None


@torch.no_grad()
def prove(model: nn.Module, loss: RouterLoss, *, who: str) -> RouterLoss:
    """The loss, if it is what the whole model answers about a few ids, one row padded.

    Raises:
        ModelError: If it is not.
    """
    causal = unwrap(model)
    was_training = model.training
    model.eval()
    ids = torch.arange(3, 15).reshape(2, 6) % causal.get_input_embeddings().weight.shape[0]
    lengths = torch.tensor([6, 4])
    mask = (torch.arange(6) < lengths[:, None]).long()
    try:
        expected = causal(input_ids=ids, attention_mask=mask, use_cache=False, output_router_logits=True).aux_loss
        said = Body(model)(ids, lengths, router_logits=True).router_logits
        own = loss(said, lengths, torch.ones(2), 6)
        is_same = bool(torch.isclose(own, torch.as_tensor(expected), rtol=TOLERANCE, atol=0.0))
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError):
        is_same = False
    finally:
        model.train(was_training)
    if not is_same:
        raise ModelError(
            f"{who}: the router loss of {type(causal).__name__} cannot be had from its body alone; {WITHOUT}"
        )
    return loss
