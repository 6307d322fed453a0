"""The finished student as a plain Hugging Face folder, with its tokenizer and a model card.

``<output_dir>/model`` holds what `AutoModelForCausalLM.from_pretrained` loads: full weights (a LoRA student's adapters
merged in, or the adapter alone where asked for). Projectors are no part of it; they stay in the checkpoints. The
folder appears whole or not at all, and takes the place of an older one in one step.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard
from safetensors import SafetensorError
from torch import Tensor

from sra_data.errors import TrainingError, one_line
from sra_data.shards.durable import flush
from sra_train.config import StudentConfig
from sra_train.record.files import remove, replace_folder
from sra_train.record.fingerprint import starting_weights
from sra_train.student import load_student, quiet_transformers


def export_model(
    *,
    options: StudentConfig,
    seed: int,
    student_name: str,
    tokenizer: Any,
    began_with: str,
    weights: Mapping[str, Tensor],
    card: ModelCard,
    folder: Path,
) -> Path:
    """Write the student with the weights of a checkpoint.

    A fresh student is loaded on the CPU and given the weights: the training copy may be sharded over processes.

    Args:
        options: How the student is loaded and adapted.
        seed: Of the run: what is new and frozen is made again from it.
        student_name: Hub id or folder the student came from.
        tokenizer: The student's, as loaded.
        began_with: The fingerprint of the weights the run began with.
        weights: The checkpoint's, by the names of `StudentModel`.
        card: README.md.
        folder: Becomes the model's folder; an older one is replaced.

    Raises:
        TrainingError: If the student is no longer the one the run began with, or the folder cannot be written.
    """
    model: Any = load_student(student_name, options, seed=seed)
    if starting_weights(model, options) != began_with:
        raise TrainingError(
            f"student {student_name}: its weights have changed since the run began, nothing is exported; bring the old"
            " ones back and run the same command again"
        )
    own = {name.removeprefix("model."): tensor for name, tensor in weights.items() if name.startswith("model.")}
    unknown = model.load_state_dict(own, strict=False).unexpected_keys
    assert not unknown, f"the checkpoint has weights the student has not: {unknown[:3]}"
    lora = options.lora
    if lora is not None and lora.export == "merged":
        model = model.merge_and_unload()
    model.config.use_cache = True
    model.eval()
    temporary = folder.with_name(f".writing-{folder.name}")
    try:
        remove(temporary)
        temporary.mkdir(parents=True)
        with quiet_transformers():
            model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        card.save(temporary / "README.md")
        for path in temporary.iterdir():
            flush(path)
        replace_folder(temporary, folder)
    except (OSError, SafetensorError) as error:
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise TrainingError(
            f"{folder}: cannot be written ({reason}); free space and run the same command again"
        ) from None
    finally:
        with suppress(OSError):  # nothing half stays
            remove(temporary)
    return folder


def push(folder: Path, *, name: str, private: bool) -> str:
    """Upload the model's folder to the Hub; its address.

    Raises:
        TrainingError: If the Hub refuses.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    try:
        address = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=folder)
    except Exception as error:  # no network, a proxy's page in place of an answer: errors of several libraries
        raise TrainingError(
            f"hub.push_to={name}: {' '.join(str(error).split())[:200]}; the model is in {folder}, log in with"
            " `hf auth login` and run the same command again"
        ) from None
    return str(address)
