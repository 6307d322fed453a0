"""Opening a teacher: a Hub id or a local folder, in one line of remedy where it cannot be.

Weights are read from safetensors only, unless asked otherwise: a pickle runs whatever code it holds. Remote code runs
only when asked. The fingerprint (fingerprint.py) names the exact teacher.
"""

from __future__ import annotations

import importlib.util
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sra_data.corpus.loading import split_revision
from sra_data.errors import ConfigError, ModelError
from sra_data.model_files import commit_of, refuse_absurd_config
from sra_data.models.checkpoint import refuse_unlike
from sra_data.models.declared import (
    base_of_adapter,
    in_one_line,
    reason_of,
    refuse_adapter_files,
    refuse_beyond,
    shapes_in,
    stored_in,
)
from sra_data.models.devices import usable_device
from sra_data.models.output_head import OutputHead, check_output_head
from sra_data.models.softcap import use_softcapped_sdpa
from sra_data.options import refuse_unknown
from sra_data.teacher.admission import refuse_config
from sra_data.teacher.fingerprint import adapter_folder, fingerprint
from sra_data.teacher.spec import Dtype, TeacherSpec
from sra_data.teacher.tensor_parallel import Load, Team, sharding_options, team

DTYPES: dict[Dtype, torch.dtype] = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


@dataclass(frozen=True)
class TeacherIdentity:
    """A teacher known by name, without its weights in memory.

    Attributes:
        name: as asked for, without `@revision`.
        revision: the Hub commit, or None for a local folder.
        config: its configuration.
        fingerprint: see `LoadedTeacher`.
        adapter: folder of the adapter, or its Hub id with the commit; None where there is none.
    """

    name: str
    revision: str | None
    config: Any
    fingerprint: str
    adapter: str | None = None

    @property
    def num_layers(self) -> int:
        """L, the decoder's blocks."""
        return num_layers_of(self.config)

    @property
    def is_tied(self) -> bool:
        """Whether its configuration says that the output head is the table of input embeddings."""
        return is_tied(self.config)


@dataclass(frozen=True)
class LoadedTeacher:
    """A teacher in memory.

    Attributes:
        model: in eval mode, without gradients.
        config: its configuration.
        fingerprint: sha256 hex over what decides its numbers; see `fingerprint.py`.
        name: as it was asked for.
        revision: the Hub commit, or None for a local folder.
    """

    model: nn.Module
    config: Any
    fingerprint: str
    name: str
    revision: str | None

    @property
    def vocabulary_size(self) -> int:
        """Rows of the input embeddings."""
        return int(self.model.get_input_embeddings().weight.shape[0])  # type: ignore[operator]

    @property
    def device(self) -> torch.device:
        """Where the output head is."""
        return OutputHead.from_model(self.model).weight.device

    @property
    def dtype(self) -> torch.dtype:
        """Of the output head."""
        return OutputHead.from_model(self.model).weight.dtype


def num_layers_of(config: Any) -> int:
    """Layers of the decoder that a configuration describes."""
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def is_tied(config: Any) -> bool:
    """Whether a configuration says that the output head is the table of input embeddings."""
    return bool(getattr(config.get_text_config(decoder=True), "tie_word_embeddings", False))


def device_of(spec: TeacherSpec) -> torch.device:
    """Where the teacher runs: on an accelerator where there is one, if it was not told."""
    return torch.device(spec.device or ("cuda" if torch.cuda.is_available() else "cpu"))


def dtype_of(spec: TeacherSpec) -> Dtype:
    """Of the teacher's numbers: bf16 on accelerators and fp32 on CPUs, if it was not told."""
    return spec.dtype or ("fp32" if device_of(spec).type == "cpu" else "bf16")


def settled(spec: TeacherSpec) -> TeacherSpec:
    """The same teacher with nothing left open: its revision apart from its name, a device and a dtype.

    Raises:
        ConfigError: If a value is none of those there are, or this machine has no such device.
    """
    refuse_unknown(spec)
    usable_device(spec.device)
    name, revision = (name_of(spec), spec.revision) if spec.revision else split_revision(name_of(spec))
    return replace(spec, name=name, revision=revision, device=str(device_of(spec)), dtype=dtype_of(spec))


def name_of(spec: TeacherSpec) -> str:
    """The teacher's name; by now one was chosen."""
    assert spec.name is not None, "a teacher without a name"
    return spec.name


def load(spec: TeacherSpec) -> LoadedTeacher:
    """Load a causal language model for capture and prove that its output head is understood.

    Raises:
        ConfigError: If a value of the spec is none of those there are.
        ModelError: If it cannot be had or understood.
    """
    spec = settled(spec)
    identity, where, together = identify(spec), device_of(spec), _team_of(spec)
    _refuse_beyond_checkpoint(spec, identity.config)
    stored_as = quantization_of(identity.config)
    options: dict[str, Any] = {
        "revision": spec.revision or "main",
        "dtype": DTYPES[dtype_of(spec)],
        "trust_remote_code": spec.trust_remote_code,
        "use_safetensors": None if spec.allow_pickle else True,
    }
    if spec.quantization is not None:
        options["quantization_config"] = _quantization(spec, stored_as)
    is_placed = spec.device_map is not None or spec.quantization is not None or stored_as is not None
    if is_placed:  # while it is loaded: quantized weights do not move afterwards, spread ones must not
        options["device_map"] = spec.device_map or {"": where}
    if together is not None:
        who, trusted = f"teacher {identity.name}", spec.trust_remote_code
        options |= sharding_options(identity.config, who=who, trust_remote_code=trusted)
    # Tensors of other shapes are let in here, so that `refuse_unlike` names them.
    options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
    with _naming_what_is_missing(identity.name, stored_as):
        model, info = _loaded(identity.name, lambda auto: auto.AutoModelForCausalLM, options)
    with _naming(identity.name):
        refuse_unlike(model, info, who=f"teacher {identity.name}")
        if spec.adapter is not None:
            model = _with_adapter(model, spec)
        if not is_placed and together is None:
            model = model.to(where)
        model.eval().requires_grad_(False)
        use_softcapped_sdpa(model)
        check_output_head(model, OutputHead.from_model(model))
        if together is not None and together.leads:
            together.lead(model)
    return LoadedTeacher(model, model.config, identity.fingerprint, identity.name, identity.revision)


def _team_of(spec: TeacherSpec) -> Team | None:
    """The processes that load this teacher together; the others hear of it here.

    Raises:
        ConfigError: If there are none to share it.
    """
    if not spec.tensor_parallel:
        return None
    found = team()
    if found is None:
        raise ConfigError("--tensor-parallel: of `sra-data cache-teacher` under torchrun alone; leave it out")
    if found.leads:
        found.tell(Load(spec))
    return found


def identify(spec: TeacherSpec) -> TeacherIdentity:
    """Configuration and fingerprint of a teacher, without loading its weights.

    Raises:
        ModelError: If there is no such teacher, or its configuration is not that of a decoder alone.
    """
    spec = settled(spec)
    config, name = read_config(spec), name_of(spec)
    folder, adapter = (None, None) if spec.adapter is None else adapter_folder(spec.adapter)
    with _naming(name):
        refuse_config(name, config)
        commit = commit_of(name, spec.revision)
        digest = fingerprint(name, config, commit, folder, runs_code=spec.trust_remote_code)
    return TeacherIdentity(name, commit, config, digest, adapter)


def read_config(spec: TeacherSpec) -> Any:
    """A teacher's configuration alone; its weights need not be there.

    Raises:
        ModelError: If there is no such teacher.
    """
    spec = settled(spec)
    who, trusted = f"teacher {spec.name}", spec.trust_remote_code
    refuse_absurd_config(name_of(spec), spec.revision, who=who, trust_remote_code=trusted)
    options = {"revision": spec.revision or "main", "trust_remote_code": spec.trust_remote_code}
    return _loaded(name_of(spec), lambda auto: auto.AutoConfig, options)


def check_vocabulary(teacher: LoadedTeacher, largest_id: int, *, tokenizer: str) -> None:
    """Refuse a teacher that has no embedding for an id its tokenizer gives."""
    if largest_id >= teacher.vocabulary_size:
        raise ModelError(
            f"teacher {teacher.name}: its vocabulary has {teacher.vocabulary_size} ids, its tokenizer {tokenizer} "
            f"gives id {largest_id}; use the tokenizer the model was trained with and align again"
        )


def _loaded(name: str, kind: Callable[[Any], Any], options: dict[str, Any]) -> Any:
    """`from_pretrained` of one of transformers' auto classes, its errors in one line."""
    import transformers

    with _quiet_transformers(), _naming(name):
        return kind(transformers).from_pretrained(name, **options)


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """No bars or reports of transformers' own."""
    from transformers.utils import logging

    had_bars, verbosity = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()  # what is loading is said by the command's own line
    logging.set_verbosity_error()  # and what is wrong with it, in one line of ours
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if had_bars:
            logging.enable_progress_bar()


def _naming(name: str) -> AbstractContextManager[None]:
    """Whatever a library raises over a teacher's files as one line."""
    remedy = "give a local folder or a Hub id of a causal language model with safetensors weights"
    return in_one_line(lambda error: f"teacher {name}: cannot be loaded ({reason_of(error)}); {remedy}")


def _refuse_beyond_checkpoint(spec: TeacherSpec, config: Any) -> None:
    """Refuse weights that are no whole files, or fewer than the configuration declares, before they are read."""
    name, who = name_of(spec), f"teacher {spec.name}"
    with _quiet_transformers():
        base_of_adapter(name, spec.revision, who=who, allow_pickle=spec.allow_pickle)
        stored = stored_in(name, spec.revision, who=who, allow_pickle=spec.allow_pickle)
        if stored is not None:  # else loading says what is missing
            refuse_beyond(config, stored, who=who, trust_remote_code=spec.trust_remote_code)


def quantization_of(config: Any) -> str | None:
    """How the weights of a checkpoint were quantized when they were saved ("gptq", "awq", ...); None where not."""
    said = getattr(config, "quantization_config", None)
    if said is None:
        return None
    found = said.get("quant_method") if isinstance(said, dict) else getattr(said, "quant_method", None)
    return str(getattr(found, "value", found) or "a method without a name")


def _quantization(spec: TeacherSpec, stored_as: str | None) -> Any:
    """bitsandbytes' configuration; products of 4-bit weights are computed in the teacher's dtype."""
    asked = f"--quantization {spec.quantization}"
    if stored_as is not None:
        raise ModelError(
            f"{asked}: the weights of teacher {spec.name} are quantized already ({stored_as}); leave it out"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(f"{asked}: needs bitsandbytes; pip install 'sra-distill[quantization]', or leave it out")
    from transformers import BitsAndBytesConfig

    if spec.quantization == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    dtype = DTYPES[dtype_of(spec)]
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype)


@contextmanager
def _naming_what_is_missing(name: str, stored_as: str | None) -> Iterator[None]:
    """A quantized checkpoint whose library or device is not here: said so, in one line."""
    try:
        yield
    except ModelError as error:
        if stored_as is None or not isinstance(error.__cause__, ImportError | RuntimeError | ValueError):
            raise
        raise ModelError(
            f"teacher {name}: its weights are quantized ({stored_as}) and cannot be opened here "
            f"({reason_of(error.__cause__)}); install what that needs, or use its unquantized checkpoint"
        ) from error


def _with_adapter(model: Any, spec: TeacherSpec) -> Any:
    adapter = str(spec.adapter)
    if importlib.util.find_spec("peft") is None:
        raise ModelError(f"--adapter {adapter}: needs peft; pip install 'sra-distill[lora]', or merge it beforehand")
    from peft import PeftModel

    folder, _ = adapter_folder(adapter)
    refuse_adapter_files(folder, who=f"--adapter {adapter}", allow_pickle=spec.allow_pickle)
    remedy = "give the folder or Hub id of an adapter trained on this very model"
    with in_one_line(lambda error: f"--adapter {adapter}: cannot be put on the teacher ({reason_of(error)}); {remedy}"):
        with warnings.catch_warnings():
            # peft leaves what an adapter's file lacks as it begins, random numbers among it.
            warnings.filterwarnings("error", message=".*missing adapter keys.*")
            adapted: Any = PeftModel.from_pretrained(model, str(folder))
        _refuse_left_out(adapted, folder)
        return adapted.merge_and_unload() if spec.quantization is None else adapted


def _refuse_left_out(adapted: Any, folder: Path) -> None:
    """Refuse an adapter with tensors for layers that the model lacks, which peft drops in silence.

    Raises:
        ValueError: With the first of them.
    """
    from peft import get_peft_model_state_dict

    file = folder / "adapter_model.safetensors"
    if file.is_file():
        taken = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        stored = shapes_in(file, who=file.name)
        left_out = sorted(name for name in stored if "lora_" in name and name not in taken)
        if left_out:
            raise ValueError(f"{len(left_out)} of its tensors have no place, the first {left_out[0]}")
