"""Open a Hugging Face tokenizer by Hub id or folder, quietly, and ask it the few things the project needs to know."""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import AutoConfig, AutoTokenizer
from transformers.utils import logging as transformers_logging

from sra_data.errors import SRAError, TokenizerError
from sra_data.model_files import is_folder, refuse_absurd_config

_NO_LIMIT = 10**30  # keeps transformers from warning about long texts; cutting is our own business
RUST_PANIC = "PanicException"  # of the tokenizers library, over values it never expected; no `Exception`
_SANE_LENGTH = 10**7  # "model_max_length" beyond this is a placeholder
_POSITION_NAMES = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length")


def split_revision(name: str) -> tuple[str, str | None]:
    """Split "name@revision" in two; the revision is None where there is none.

    A folder that exists under the whole name stays one, "@" and all.
    """
    stem, at, revision = name.rpartition("@")
    if not at or not stem or not revision or is_folder(name):
        return name, None
    return stem, revision


def load_tokenizer(name: str, revision: str | None, trust_remote_code: bool) -> Any:
    """The tokenizer of a folder or Hub id, fast if there is one.

    Raises:
        TokenizerError: If there is none, or it cannot be opened.
        ModelError: If the config.json beside it is absurd: opening a tokenizer may read it.
    """
    refuse_absurd_config(name, revision, who=name, trust_remote_code=trust_remote_code)
    with opening_tokenizer(name, revision), _quiet():
        return AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)


@contextmanager
def opening_tokenizer(name: str, revision: str | None) -> Iterator[None]:
    """Whatever opening a tokenizer, and asking it for a first text, raises over its files: as one line.

    Raises:
        TokenizerError: In place of it.
    """
    try:
        yield
    except SRAError:
        raise
    except BaseException as error:  # the tokenizers library raises bare Exception, transformers half a dozen kinds
        if not isinstance(error, Exception) and type(error).__name__ != RUST_PANIC:
            raise
        at = f" at revision {revision}" if revision else ""
        reason = _first_sentence(error)
        if is_folder(name):
            raise TokenizerError(
                f"{name}: the folder holds no tokenizer that transformers can open ({reason}); "
                "name a folder written by save_pretrained, with its tokenizer.json"
            ) from error
        raise TokenizerError(
            f"{name}{at}: neither a folder nor a tokenizer reachable on the Hub ({reason}); "
            "check the spelling, the network and your access, or name a local folder"
        ) from error


def positions_of(name: str, revision: str | None, trust_remote_code: bool, tokenizer: Any) -> int | None:
    """Tokens the model beside the tokenizer can read: from its config, else from the tokenizer, else None."""
    try:
        with _quiet():
            config = AutoConfig.from_pretrained(name, revision=revision, trust_remote_code=trust_remote_code)
    except Exception:  # whatever its values lead to; whoever opens the model says so
        config = None  # a tokenizer without a model is fine
    if config is not None:
        text_config = config.get_text_config()
        for field in _POSITION_NAMES:
            if isinstance(positions := getattr(text_config, field, None), int) and positions > 0:
                return positions
    length = getattr(tokenizer, "model_max_length", None)
    return int(length) if length is not None and 0 < length < _SANE_LENGTH else None


def prepare(tokenizer: Any) -> None:
    """Switch off the tokenizer's own truncation, padding and warnings about length."""
    tokenizer.model_max_length = _NO_LIMIT
    if tokenizer.is_fast:
        tokenizer.backend_tokenizer.no_truncation()
        tokenizer.backend_tokenizer.no_padding()


def frame_ids(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The ids a tokenizer puts before and behind a text, learned from what it does to one."""
    encoded = tokenizer("a", return_special_tokens_mask=True, verbose=False)
    ids, mask = encoded["input_ids"], encoded["special_tokens_mask"]
    if 0 not in mask:
        # A text of nothing but an unknown token may count as special in slow tokenizers; the unframed ids tell.
        inner = tokenizer("a", add_special_tokens=False, verbose=False)["input_ids"]
        first = next((i for i in range(len(ids)) if ids[i : i + len(inner)] == inner), len(ids))
        last = first + len(inner)
    else:
        first, last = mask.index(0), len(mask) - mask[::-1].index(0)
    return tuple(ids[:first]), tuple(ids[last:])


def plain_template(tokenizer: Any) -> str | None:
    """The chat template used when nothing else is asked for; None for a base model."""
    template = getattr(tokenizer, "chat_template", None)
    return template.get("default") if isinstance(template, dict) else template


def definition_of(tokenizer: Any) -> str:
    """Everything that decides how texts are cut: a fast tokenizer's ``tokenizer.json``, a slow one's vocabulary."""
    if tokenizer.is_fast:
        definition: str = tokenizer.backend_tokenizer.to_str()
        return definition
    return json.dumps([type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())])


def fingerprint_of(tokenizer: Any, definition: str) -> str:
    """sha256 hex of everything that decides how texts are cut (``definition_of``) and chats are written."""
    special = json.dumps({name: str(token) for name, token in sorted(tokenizer.special_tokens_map.items())})
    digest = hashlib.sha256()
    for part in (definition, special, plain_template(tokenizer) or ""):
        digest.update(part.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep transformers' advice about other people's files off the terminal."""
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)


def _first_sentence(error: BaseException) -> str:
    """The gist of an error on one line."""
    line = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    sentence = line.split(". ")[0].rstrip(".:")
    return sentence if len(sentence) <= 160 else sentence[:157] + "..."
