"""The student: a causal language model and the method's projectors in one module.

`StudentModel.forward` runs the model's BODY only: hidden states of the mapped layers and, where the method wants it,
the last query's attention row. The output head is handed to the method as a thing of its own, so that logits exist
only where a loss reads them. Model and projectors are one module because DDP, FSDP2, the optimizer and a checkpoint
then treat them as one.

Mixed precision: the body runs under autocast; the method does not, because cosines of bf16 products are too coarse to
compare. It gets hidden states in the compute dtype and decides itself what is a large product and what a small sum.

Never done here: resizing the vocabulary, left padding, a forward of the whole batch's logits.

Legend: B batch, N student tokens, D hidden size.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from sra_data.errors import ConfigError, ModelError, one_line
from sra_data.model_files import is_folder, refuse_absurd_config
from sra_data.models.attention import LastQueryAttention
from sra_data.models.checkpoint import refuse_unlike
from sra_data.models.declared import base_of_adapter, in_one_line, refuse_beyond, stored_in
from sra_data.models.decoder import (
    decoder_body,
    decoder_layers,
    input_embeddings,
    refuse_encoder,
    states_offset,
    text_config,
    unwrap,
)
from sra_data.models.devices import without_numbers
from sra_data.models.output_head import OutputHead, check_output_head
from sra_data.models.softcap import use_softcapped_sdpa
from sra_train.body import Body
from sra_train.config import LoraConfig, StudentConfig
from sra_train.config.metric import ROUTER
from sra_train.contract import Batch, LabelRows, LossTerms, ModelShape, StepTotals, StudentOutput
from sra_train.likelihood import token_nats
from sra_train.methods.base import Method
from sra_train.router import RouterLoss

# Query and value projections under the names the families use; a fused projection is adapted whole.
QUERY_AND_VALUE_NAMES = (
    ("q_proj", "v_proj"),
    ("c_attn",),
    ("query_key_value",),
    ("qkv_proj",),
    ("Wqkv",),
    ("q_lin", "v_lin"),
    ("query", "value"),
    ("q_attn", "c_attn"),
)


class StudentLosses(TypedDict):
    """What one forward of `StudentModel` gives: a plain dict, because FSDP2 looks for tensors in those only."""

    total: Tensor  # scalar with gradient
    terms: dict[str, Tensor]  # detached scalars
    per_example: dict[str, Tensor]  # [B], detached
    counts: dict[str, Tensor]  # detached scalars
    nats: Tensor | None  # [B] float64, sum of -log P over the asked-for tokens; None where none were


class StudentModel(nn.Module):
    """A causal language model and a method's parameters.

    Args:
        model: A Hugging Face causal language model, or a PEFT model around one.
        method: The objective.
        compute_dtype: bfloat16 or float16 for mixed precision, None for the weights' own.
        router: Of a mixture of experts, whose loss is added to the method's; None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        method: Method,
        compute_dtype: torch.dtype | None = None,
        router: RouterLoss | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.method = method
        self.compute_dtype = compute_dtype
        self.router = router
        layers = method.student_needs.attention_layers
        self.last_query = LastQueryAttention.attach(model, layers) if layers else None
        self.body = Body(model)
        self.num_layers = len(decoder_layers(model))
        wrong = [layer for layer in method.student_layers if not 0 <= layer <= self.num_layers]
        if wrong:
            raise ModelError(f"student layer {wrong[0]}: the student has layers 0 to {self.num_layers}; choose another")
        inner = [layer for layer in method.student_layers if layer < self.num_layers]
        self.states_offset = offset_of_inner_layers(model, inner) if inner else 0
        if method.student_needs.embeddings:
            embedding_table(model)  # refused now, not in the first step

    def forward(self, batch: Batch, totals: StepTotals, text: LabelRows | None = None) -> StudentLosses:
        """The method's losses on one micro-batch.

        Args:
            batch: On the student's device.
            totals: Of the global step.
            text: Positions whose next tokens' -log P is summed into `nats`; None where it is not wanted.
        """
        output = self.student_output(batch)
        with torch.autocast(batch.input_ids.device.type, enabled=False):
            losses = self.with_router(self.method(output, batch, totals), output, batch, totals)
            nats = None
            if text is not None:
                nats = token_nats(hidden=output.hidden[self.num_layers], head=output.head, rows=text)
            # Every projector is part of every graph, or DDP waits for gradients of a batch that has no span.
            silent = sum(
                (parameter.sum() for parameter in self.method.parameters() if parameter.requires_grad), start=0.0
            )
            total = losses.total + 0.0 * silent
        return StudentLosses(
            total=total, terms=losses.terms, per_example=losses.per_example, counts=losses.counts, nats=nats
        )

    def with_router(self, losses: LossTerms, output: StudentOutput, batch: Batch, totals: StepTotals) -> LossTerms:
        """The losses and the router's, weighted by the micro-batch's share of the step's examples."""
        if self.router is None:
            return losses
        value = self.router(output.router_logits, batch.lengths, batch.weight, batch.input_ids.shape[1])
        value = value * batch.weight.sum() / max(totals.examples, 1)
        terms = {**losses.terms, ROUTER: value.detach()}
        return replace(losses, total=losses.total + self.router.coefficient * value, terms=terms)

    def student_output(self, batch: Batch) -> StudentOutput:
        """Hidden states and attention rows of the layers the method reads; no logits."""
        inner = [layer for layer in self.method.student_layers if layer < self.num_layers]
        capture: AbstractContextManager[dict[int, Tensor]] = (
            nullcontext({}) if self.last_query is None else self.last_query.capture(batch.lengths - 1)
        )
        with self._autocast(batch.input_ids.device.type), capture as rows:
            said = self.body(
                batch.input_ids, batch.lengths, all_layers=bool(inner), router_logits=self.router is not None
            )
        hidden = {layer: said.hidden_states[layer + self.states_offset] for layer in inner}
        hidden[self.num_layers] = said.last_hidden_state
        if self.compute_dtype is not None:
            hidden = {layer: states.to(self.compute_dtype) for layer, states in hidden.items()}
        output = StudentOutput(hidden=hidden, attention=dict(rows), head=OutputHead.from_model(self.model))
        if self.router is not None:
            output.router_logits = said.router_logits
        if self.method.student_needs.embeddings:
            output.embeddings, output.embedding_scale = embedding_table(self.model)
        return output

    def _autocast(self, device_type: str) -> Any:
        if self.compute_dtype is None:
            return nullcontext()
        return torch.autocast(device_type, dtype=self.compute_dtype)


def offset_of_inner_layers(model: nn.Module, inner: Sequence[int]) -> int:
    """What to add to an inner layer's number to find its states in the body's list: see `states_offset`.

    Raises:
        ModelError: If they are not as wide as those the output head reads, or not in the list.
    """
    kind, width = type(unwrap(model)).__name__, getattr(text_config(model), "hidden_size", None)
    read = OutputHead.from_model(model).weight.shape[1]
    if width not in (None, read):
        raise ModelError(
            f"student layer {inner[0]}: {kind} is {width} wide there, its output head reads {read}, for which "
            "projectors are made; choose the last layer"
        )
    offset = states_offset(model)
    if 0 in inner and offset:
        raise ModelError(f"student layer 0: {kind} does not list its embeddings; choose 1")
    return offset


def embedding_table(model: nn.Module) -> tuple[Tensor, float]:
    """The table of input embeddings [V, D] without gradient, and what the family multiplies a row of it by.

    Raises:
        ModelError: If it is not as wide as the states the output head reads, for which projectors are made.
    """
    found = input_embeddings(model)
    width = OutputHead.from_model(model).weight.shape[1]
    if found.weight.shape[1] != width:
        raise ModelError(
            f"model class {type(unwrap(model)).__name__}: its input embeddings are {found.weight.shape[1]} wide, its"
            f" output head reads {width}; choose a student where both are the same, or method=sra"
        )
    return found.weight.detach(), found.scale


def model_shape(model: nn.Module) -> ModelShape:
    """Sizes, as a method wants to know them."""
    vocabulary_size, hidden_size = OutputHead.from_model(model).weight.shape
    return ModelShape(
        num_layers=len(decoder_layers(model)), hidden_size=int(hidden_size), vocabulary_size=int(vocabulary_size)
    )


def load_student(name: str, options: StudentConfig, *, seed: int = 0) -> nn.Module:
    """The causal language model to be trained, ready but for the projectors.

    Args:
        name: Hub id or folder.
        options: How to load it.
        seed: Of new weights (random initialisation, adapters): the same on every process and after every restart.

    Raises:
        ModelError: If it cannot be loaded, or its logits are not its head over its last hidden states.
        ConfigError: If a name to freeze or adapt does not exist.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = open_model(name, options)
        with in_one_line(lambda error: f"student {name}: {loading_problem(name, error)}"):
            check_output_head(model, OutputHead.from_model(model))
        freeze(model, options.freeze)
        return add_lora(model, options.lora) if options.lora is not None else model


def declared_student(name: str, options: StudentConfig) -> nn.Module:
    """What `load_student` returns, on the meta device: names, shapes and switches, and no numbers.

    Whoever asks has had the student loaded elsewhere: what a library raises here is not made a line of.
    """
    from transformers import AutoConfig, AutoModelForCausalLM
    from transformers.initialization import no_init_weights

    shared, placed = _how_to_open(options)
    with quiet_transformers(), without_numbers(), no_init_weights():
        config = AutoConfig.from_pretrained(name, **shared)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=options.trust_remote_code, **placed)
        model.tie_weights()  # which is left out where weights are not initialised
        _settle(model, options)
        freeze(model, options.freeze)
        return add_lora(model, options.lora) if options.lora is not None else model


def _how_to_open(options: StudentConfig) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a configuration and a model are opened with, and what a model is opened with beside it."""
    shared: dict[str, Any] = {"trust_remote_code": options.trust_remote_code}
    if options.revision is not None:
        shared["revision"] = options.revision
    placed: dict[str, Any] = {"dtype": getattr(torch, options.dtype)}
    if options.attention is not None:
        placed["attn_implementation"] = options.attention
    return shared, placed


def _settle(model: Any, options: StudentConfig) -> None:
    """What is switched on any model that is opened here."""
    model.config.use_cache = False
    if options.attention is None:
        use_softcapped_sdpa(model)


def open_model(name: str, options: StudentConfig) -> nn.Module:
    """A causal language model from its weights, or with new ones from its configuration.

    Raises:
        ModelError: If it cannot be loaded, or declares more than its checkpoint (or this machine) holds.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    who, trusted = f"student {name}", {"trust_remote_code": options.trust_remote_code}
    refuse_absurd_config(name, options.revision, who=who, **trusted)
    shared, placed = _how_to_open(options)
    with quiet_transformers(), in_one_line(lambda error: f"{who}: {loading_problem(name, error)}"):
        if options.init == "random":
            config = AutoConfig.from_pretrained(name, **shared)
            refuse_encoder(config, who=who)
            refuse_beyond(config, None, who=who, **trusted)
            model = AutoModelForCausalLM.from_config(config, **trusted, **placed)
        else:
            base = base_of_adapter(name, options.revision, who=who)
            stored = stored_in(base, options.revision, who=who)
            if stored is not None:  # else loading says what is missing
                config = AutoConfig.from_pretrained(base, **shared)
                refuse_encoder(config, who=who)
                refuse_beyond(config, stored, who=who, **trusted)
            # Tensors of other shapes are let in here, so that `refuse_unlike` names them.
            checked = {"output_loading_info": True, "ignore_mismatched_sizes": True}
            model, info = AutoModelForCausalLM.from_pretrained(
                name, use_safetensors=True, **checked, **shared, **placed
            )
            refuse_unlike(model, info, who=who)
        _settle(model, options)
    return model


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bars or reports of transformers' own: what is going on, or wrong, is said in lines of ours."""
    from transformers.utils import logging

    was_on, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if was_on:
            logging.enable_progress_bar()


def loading_problem(name: str, error: Exception) -> str:
    """Why a model did not load, and what to do, in one line."""
    folder = Path(name)
    if is_folder(name) and (folder / "config.json").is_file() and not list(folder.glob("*.safetensors*")):
        return "the folder has a config.json but no safetensors weights; add them or set student.init=random"
    text = one_line(error)
    return f"cannot be loaded ({text[:200]}); give a Hub id or a folder with config.json and *.safetensors"


def freeze(model: nn.Module, prefixes: Iterable[str]) -> None:
    """Stop training the parameters whose name starts with one of `prefixes`.

    Raises:
        ConfigError: If a prefix names nothing.
    """
    for prefix in prefixes:
        found = [parameter for name, parameter in model.named_parameters() if name.startswith(prefix)]
        if not found:
            some = ", ".join(sorted({name.split(".weight")[0] for name, _ in model.named_parameters()})[:4])
            raise ConfigError(f"student.freeze={prefix}: no parameter's name starts so; names look like {some}")
        for parameter in found:
            parameter.requires_grad_(False)


def add_lora(model: nn.Module, options: LoraConfig) -> nn.Module:
    """The model with low-rank adapters on its query and value projections; everything else is frozen.

    Raises:
        ConfigError: If peft is not installed or no layer of that name exists.
    """
    try:
        import peft
    except ImportError:
        raise ConfigError("student.lora: needs the peft library; install the package with its [lora] extra") from None
    names = options.target_modules or query_and_value_names(model)
    layers = [module for name, module in model.named_modules() if name.rsplit(".", 1)[-1] in names]
    if not layers:
        raise ConfigError(f"student.lora.target_modules={list(names)}: the student has no such layer; name its linears")
    config = peft.LoraConfig(
        r=options.r,
        lora_alpha=options.alpha,
        lora_dropout=options.dropout,
        target_modules=list(names),
        # GPT-2's Conv1D keeps its weight as [inputs, outputs]
        fan_in_fan_out=type(layers[0]).__name__ == "Conv1D",
        task_type="CAUSAL_LM",
    )
    with warnings.catch_warnings():
        # peft reads a property that transformers renamed; nothing a user could mend
        warnings.filterwarnings("ignore", message=".*is_gradient_checkpointing.*", category=FutureWarning)
        try:
            return peft.get_peft_model(model, config)
        except ValueError as error:  # layers of a kind that has no adapter
            reason = " ".join(str(error).split(". ")[0].split())
            raise ConfigError(f"student.lora.target_modules={list(names)}: {reason}; name linear layers") from None


def query_and_value_names(model: nn.Module) -> tuple[str, ...]:
    """The names of the query and value projections in this architecture.

    Raises:
        ConfigError: If none of the known names occurs.
    """
    inside = {name.rsplit(".", 1)[-1] for name, _ in decoder_layers(model).named_modules()}
    for names in QUERY_AND_VALUE_NAMES:
        if inside.issuperset(names):
            return names
    raise ConfigError(
        f"student.lora: no query and value projections known in {text_config(model).model_type};"
        " name them in student.lora.target_modules"
    )


def prepare_for_training(model: nn.Module, *, gradient_checkpointing: bool, compile_body: bool) -> None:
    """Switch on what saves memory or time; in place, so that parameter names stay what they are."""
    model.train()
    if gradient_checkpointing:
        causal = unwrap(model)
        # transformers renamed it on the way to version 6
        name = "activation" if hasattr(causal, "activation_checkpointing_enable") else "gradient"
        getattr(causal, f"{name}_checkpointing_enable")({"use_reentrant": False})
    if compile_body:
        decoder_body(model).compile(dynamic=True)


def parameter_groups(
    student: StudentModel, *, learning_rate: float, projector_learning_rate: float, weight_decay: float
) -> list[dict[str, Any]]:
    """The optimizer's groups: matrices with decay; vectors (biases, norms) and projectors without.

    Each group keeps its name and peak rate, from which the schedule computes the rate of every step.
    """
    trained = [(name, parameter) for name, parameter in student.named_parameters() if parameter.requires_grad]
    projectors = [parameter for name, parameter in trained if name.startswith("method.")]
    matrices = [parameter for name, parameter in trained if not name.startswith("method.") and parameter.dim() > 1]
    vectors = [parameter for name, parameter in trained if not name.startswith("method.") and parameter.dim() <= 1]
    groups = [
        {"params": matrices, "peak": learning_rate, "weight_decay": weight_decay, "name": "matrices"},
        {"params": vectors, "peak": learning_rate, "weight_decay": 0.0, "name": "vectors"},
        {"params": projectors, "peak": projector_learning_rate, "weight_decay": 0.0, "name": "projectors"},
    ]
    if not matrices and not vectors:
        raise ConfigError("student.freeze: nothing of the student is left to train; freeze less")
    return [group | {"lr": group["peak"]} for group in groups if group["params"]]


def num_parameters(student: nn.Module) -> tuple[int, int]:
    """(all, trained) parameters, shared ones counted once."""
    parameters = list(student.parameters())
    return sum(p.numel() for p in parameters), sum(p.numel() for p in parameters if p.requires_grad)


def block_class_name(model: nn.Module) -> str:
    """Name of the decoder block's class, which FSDP2 shards one by one."""
    return type(decoder_layers(model)[0]).__name__


def readable_family(model: nn.Module) -> str:
    """Architecture in words for the model card."""
    return re.sub(r"ForCausalLM$|LMHeadModel$", "", type(model).__name__)
