"""Model folders that are none: as a tokenizer for `align`, as a teacher, as a student, and where they are evaluated.

Most mistakes are one for every command that opens a model; which keys a family has differs, so a mistake may name
LAYERS, WIDTH, HEADS and so on.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.bad_inputs.case import ALIGN, CACHE, EVALUATE, RUN, Case, copied, written

Damage = Callable[[Path], object]
Says = tuple[str, ...]
WEIGHTS = "model.safetensors"
KEYS = {
    "TEACHER": {
        "LAYERS": "num_hidden_layers",
        "WIDTH": "hidden_size",
        "HEADS": "num_attention_heads",
        "POSITIONS": "max_position_embeddings",
        "ACTIVATION": "hidden_act",
        "BODY": "model.layers.1.input_layernorm.weight",
        "TABLE": "model.embed_tokens.weight",
    },
    "STUDENT": {
        "LAYERS": "n_layer",
        "WIDTH": "n_embd",
        "HEADS": "n_head",
        "POSITIONS": "n_positions",
        "ACTIVATION": "activation_function",
        "BODY": "transformer.h.1.ln_1.weight",
        "TABLE": "transformer.wte.weight",
    },
}


# --------------------------------------------------------------------------- how a folder is damaged


def config(which: str, **values: Any) -> Damage:
    """Sets keys of config.json; None takes one out."""

    def damage(folder: Path) -> None:
        from tests.hostile_models import with_config

        with_config(folder, **{KEYS[which].get(name, name): value for name, value in values.items()})

    return damage


def content(name: str, text: str | bytes) -> Damage:
    """Writes a file of the folder anew."""
    return lambda folder: (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


def without(*names: str) -> Damage:
    """Takes files away."""
    return lambda folder: [(folder / name).unlink() for name in names]


def folder_at(name: str) -> Damage:
    """Puts a folder in the place of a file."""

    def damage(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return damage


def header(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Changes what stands before the weights."""

    def damage(folder: Path) -> None:
        from tests.hostile_models import safetensors_bytes, safetensors_parts

        found, body = safetensors_parts(folder / WEIGHTS)
        change(found)
        (folder / WEIGHTS).write_bytes(safetensors_bytes(found, body))

    return damage


def weights(change: Callable[[dict[str, Any]], object]) -> Damage:
    """Changes the tensors themselves."""

    def damage(folder: Path) -> None:
        from safetensors.torch import load_file, save_file

        found = load_file(folder / WEIGHTS)
        change(found)
        save_file(found, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def _cut(size: int) -> Damage:
    return lambda folder: (folder / WEIGHTS).write_bytes((folder / WEIGHTS).read_bytes()[:size])


def _pickled(folder: Path) -> None:
    (folder / WEIGHTS).unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


def _index(weight_map: Any) -> Damage:
    def damage(folder: Path) -> None:
        (folder / WEIGHTS).rename(folder / "weights.bin")
        (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))

    return damage


def _wider(name: str) -> Damage:
    def change(found: dict[str, Any]) -> None:
        import torch

        found[name] = torch.cat([found[name], found[name]])

    return weights(change)


def _full_of(name: str, value: float) -> Damage:
    return weights(lambda found: found[name].fill_(value))


def _of_integers(found: dict[str, Any]) -> None:
    import torch

    for name in found:
        found[name] = found[name].to(torch.int8)


# --------------------------------------------------------------------------- of every model


def of_any(which: str) -> dict[str, tuple[Damage, Says]]:
    """What is wrong with a model folder of a family, whoever opens it."""
    body, table = KEYS[which]["BODY"], KEYS[which]["TABLE"]
    return {
        "a config.json that is no JSON": (content("config.json", "{nonsense"), ("config.json",)),
        "a config.json of bytes": (content("config.json", b"\xff\xfe\x00"), ("config.json",)),
        "a config.json that is a list": (content("config.json", "[]"), ("config.json", "list")),
        "a config.json nested too deep": (content("config.json", '{"a":' * 100_000), ("config.json",)),
        "a config.json that is a folder": (folder_at("config.json"), ("model",)),
        "a family that there is not": (config(which, model_type="lama"), ("model", "lama")),
        "no family": (config(which, model_type=None, architectures=None), ("model",)),
        "a family that is a number": (config(which, model_type=7), ("model",)),
        "an encoder": (config(which, model_type="bert", architectures=["BertModel"]), ("model",)),
        "an encoder with a decoder": (config(which, model_type="t5", architectures=["T5Model"]), ("model",)),
        "a picture model": (config(which, model_type="vit", architectures=["ViTModel"]), ("model",)),
        "a million layers": (config(which, LAYERS=1_000_000), ("model", "1000000")),
        "more layers than the weights have": (config(which, LAYERS=90_000), ("model",)),
        "layers below none": (config(which, LAYERS=-1), ("model", "-1")),
        "layers in words": (config(which, LAYERS="three"), ("model",)),
        "no layers": (config(which, LAYERS=0), ("model", "0")),
        "fewer layers than the weights have": (config(which, LAYERS=1), ("model", "tensors")),
        "no width": (config(which, WIDTH=0), ("model", "0")),
        "a width of half a number": (config(which, WIDTH=32.5), ("model",)),
        "another width": (config(which, WIDTH=64), ("model",)),
        "no heads": (config(which, HEADS=0), ("model",)),
        "heads that do not divide the width": (config(which, HEADS=5), ("model",)),
        "heads that are a list": (config(which, HEADS=[4]), ("model",)),
        "ids without end": (config(which, vocab_size=10**13), ("model",)),
        "ids below none": (config(which, vocab_size=-5), ("model", "-5")),
        "ids that are no number": (config(which, vocab_size=True), ("model",)),
        "an activation that there is not": (config(which, ACTIVATION="swoosh"), ("model", "swoosh")),
        "an activation that is a list": (config(which, ACTIVATION=["gelu"]), ("model",)),
        "numbers of no kind": (config(which, dtype="float99"), ("model", "float99")),
        "attention of a stranger's": (config(which, attn_implementation="evil/kernel"), ("evil/kernel", "code")),
        "a quantization that is text": (config(which, quantization_config="int4"), ("model",)),
        "weights that are nowhere": (without(WEIGHTS), ("model", "safetensors")),
        "weights of no byte": (content(WEIGHTS, b""), ("model", WEIGHTS)),
        "weights of prose": (content(WEIGHTS, "Dear reader, " * 9), ("model", WEIGHTS)),
        "weights that are cut": (_cut(3000), ("model", WEIGHTS)),
        "weights that are cut in their header": (_cut(100), ("model", WEIGHTS)),
        "weights with a header without end": (content(WEIGHTS, b"\xff" * 7 + b"\x7f{}"), ("model", WEIGHTS)),
        "weights with a header that is no JSON": (content(WEIGHTS, b"\x08" + b"\0" * 7 + b"nonsense"), (WEIGHTS,)),
        "weights that are a folder": (folder_at(WEIGHTS), ("model",)),
        "weights in a pickle": (_pickled, ("model", "safetensors")),
        "weights named outside their folder": (_index({"a": "../../etc/passwd"}), ("model", "passwd")),
        "weights named that are not there": (_index({"a": "model-00001.safetensors"}), ("model-00001", "missing")),
        "weights named by no map": (_index([1, 2]), ("model", "index.json")),
        "an index that is no JSON": (
            lambda folder: (_index({})(folder), content(f"{WEIGHTS}.index.json", "{")(folder)),
            ("model", "index.json"),
        ),
        "a tensor that is missing": (weights(lambda found: found.pop(body)), ("model", "lacks", body)),
        "a tensor of another shape": (_wider(body), ("model", body)),
        "a tensor more": (
            weights(lambda found: found.update({f"{body}.more": found[body].clone()})),
            ("model", "tensors"),
        ),
        "a table of other ids": (_wider(table), ("model", table)),
        "whole numbers for weights": (weights(_of_integers), ("model", "whole numbers")),
        "a tensor of a kind that there is not": (
            header(lambda found: found[body].update(dtype="F3")),
            ("model", WEIGHTS),
        ),
        "a tensor that reaches beyond the file": (
            header(lambda found: found[body].update(data_offsets=[0, 1 << 40])),
            ("model", WEIGHTS),
        ),
        "a tensor with a side below none": (header(lambda found: found[body].update(shape=[-32])), ("model", WEIGHTS)),
    }


# --------------------------------------------------------------------------- by command


TOKENIZERS: dict[str, tuple[Damage, Says]] = {
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), ("model", "tokenizer")),
    "a tokenizer.json that is no JSON": (content("tokenizer.json", "{nonsense"), ("model", "tokenizer")),
    "a tokenizer.json of nothing": (content("tokenizer.json", ""), ("model", "tokenizer")),
    "a tokenizer.json of an empty object": (content("tokenizer.json", "{}"), ("model", "tokenizer")),
    "a tokenizer.json that is a list": (content("tokenizer.json", "[]"), ("model", "tokenizer")),
    "a tokenizer.json of bytes": (content("tokenizer.json", b"\xff\x00\xfe"), ("model", "tokenizer")),
    "a tokenizer.json nested too deep": (content("tokenizer.json", '{"model":' * 50_000), ("model", "tokenizer")),
    "a tokenizer.json that is a folder": (folder_at("tokenizer.json"), ("model", "tokenizer")),
    "a tokenizer_config.json that is no JSON": (content("tokenizer_config.json", "{"), ("model", "tokenizer")),
    "a tokenizer_config.json that is a list": (content("tokenizer_config.json", "[]"), ("model", "tokenizer")),
}


def tokenizer(change: Callable[[dict[str, Any]], object], name: str = "tokenizer.json") -> Damage:
    """Changes the tokenizer's definition."""

    def damage(folder: Path) -> None:
        found = json.loads((folder / name).read_text())
        change(found)
        (folder / name).write_text(json.dumps(found))

    return damage


TOKENIZERS |= {
    "a tokenizer of a kind that there is not": (
        tokenizer(lambda found: found["model"].update(type="Magic")),
        ("model", "tokenizer"),
    ),
    "a tokenizer without a vocabulary": (tokenizer(lambda found: found["model"].pop("vocab")), ("model", "tokenizer")),
    "a tokenizer of merges that it has no pieces for": (
        tokenizer(lambda found: found["model"].update(merges=[["zzz", "qqq"]])),
        ("model", "tokenizer"),
    ),
    "a tokenizer of ids below none": (
        tokenizer(lambda found: found["model"]["vocab"].update(a=-1)),
        ("model", "tokenizer"),
    ),
    "a tokenizer whose added tokens are text": (
        tokenizer(lambda found: found.update(added_tokens="</s>")),
        ("model", "tokenizer"),
    ),
    "a tokenizer with a pre-tokenizer that there is not": (
        tokenizer(lambda found: found.update(pre_tokenizer={"type": "Scissors"})),
        ("model", "tokenizer"),
    ),
    "a tokenizer with a pattern that is none": (
        tokenizer(
            lambda found: found.update(
                pre_tokenizer={"type": "Split", "pattern": {"Regex": "(("}, "behavior": "Isolated", "invert": False}
            )
        ),
        ("model", "tokenizer"),
    ),
    "a tokenizer's end that is an object": (
        tokenizer(lambda found: found.update(eos_token={"nothing": 1}), "tokenizer_config.json"),
        ("model", "tokenizer"),
    ),
    "a tokenizer whose template is a number": (
        tokenizer(lambda found: found.update(chat_template=5), "tokenizer_config.json"),
        ("model",),
    ),
}

# Rows that a template refuses are counted: where all are, nothing is left to measure.
TEMPLATES: dict[str, tuple[Damage, Says]] = {
    "a tokenizer whose template is no template": (
        tokenizer(lambda found: found.update(chat_template="{% if %}"), "tokenizer_config.json"),
        ("no example fits", "template_refused"),
    ),
    "a tokenizer whose template refuses": (
        tokenizer(lambda found: found.update(chat_template="{{ raise_exception('never') }}"), "tokenizer_config.json"),
        ("no example fits", "template_refused"),
    ),
    "a tokenizer whose template divides by nothing": (
        tokenizer(lambda found: found.update(chat_template="{{ 1 // 0 }}"), "tokenizer_config.json"),
        ("no example fits", "template_refused"),
    ),
}

TEACHERS: dict[str, tuple[Damage, Says]] = {
    **of_any("TEACHER"),
    "no config.json": (without("config.json"), ("model", "config.json")),
    "more keys than heads": (config("TEACHER", num_key_value_heads=3), ("model",)),
    "a rope that is none": (config("TEACHER", rope_parameters={"rope_type": "hemp"}), ("model", "hemp")),
    "a rope that is text": (config("TEACHER", rope_parameters="long"), ("model",)),
    "fewer positions than the rows have": (config("TEACHER", POSITIONS=4), ("model", "4")),
    "weights that are no number": (
        _full_of("model.layers.1.mlp.up_proj.weight", float("nan")),
        ("model", "NaN or infinite"),
    ),
    "weights without end": (_full_of("lm_head.weight", float("inf")), ("model", "NaN or infinite")),
    "a class of a stranger's": (
        config("TEACHER", auto_map={"AutoModelForCausalLM": "evil.Model"}, model_type="evil"),
        ("model", "evil"),
    ),
    "another vocabulary": (config("TEACHER", vocab_size=50), ("model",)),
    "another tokenizer": (
        lambda folder: (folder / "tokenizer.json").write_text(
            (folder / "tokenizer.json").read_text().replace('"</s>"', '"</t>"')
        ),
        ("model", "tokenizer"),
    ),
    "a tokenizer that is no JSON": (content("tokenizer.json", "{"), ("model", "tokenizer")),
    "an empty folder": (
        without("config.json", "generation_config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json"),
        ("model",),
    ),
}

STUDENTS: dict[str, tuple[Damage, Says]] = {
    **of_any("STUDENT"),
    "no config.json": (without("config.json"), ("model", "config.json")),
    "fewer embeddings than the tokenizer has ids": (
        lambda folder: (config("STUDENT", vocab_size=100)(folder), _shorter_table(folder)),
        ("model", "100"),
    ),
    "weights that are no number": (_full_of("transformer.ln_f.weight", float("nan")), ("model", "NaN or infinite")),
    "a drop-out beyond one": (config("STUDENT", resid_pdrop=1.5), ("model", "1.5")),
    "a drop-out in words": (config("STUDENT", attn_pdrop="some"), ("model",)),
    "another tokenizer": (
        tokenizer(lambda found: found.update(chat_template="{{ messages }}"), "tokenizer_config.json"),
        ("model", "tokenizer"),
    ),
    "no tokenizer": (without("tokenizer.json", "tokenizer_config.json"), ("model", "tokenizer")),
}


def _shorter_table(folder: Path) -> None:
    weights(lambda found: found.update({KEYS["STUDENT"]["TABLE"]: found[KEYS["STUDENT"]["TABLE"]][:100].clone()}))(
        folder
    )


# Opened a fourth time by the same code as a student is: what differs is where it is evaluated.
EVALUATED = (
    "a config.json that is no JSON",
    "a family that there is not",
    "an encoder",
    "a million layers",
    "heads that do not divide the width",
    "weights that are cut",
    "weights in a pickle",
    "weights named outside their folder",
    "a tensor that is missing",
    "a tensor of another shape",
    "attention of a stranger's",
)
CHAT = json.dumps({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}) + "\n"


def _case(kind: str, line: str, which: str, wrong: str, found: tuple[Damage, Says], **more: Any) -> Case:
    damage, says = found
    return Case(f"models: {kind}, {wrong}", line, says, copied(which, "model", damage), **more)


def _tokenizer_case(line: str, wrong: str, found: tuple[Damage, Says]) -> Case:
    damage, says = found

    def prepare(place: Path, world: Any) -> None:
        copied("TEACHER", "model", damage)(place, world)
        written("chat.jsonl", CHAT)(place, world)

    return Case(f"models: to cut by, {wrong}", f"{line} --data chat.jsonl", says, prepare)


CASES: list[Case] = [
    *(_tokenizer_case(ALIGN.replace("STUDENT", "model"), wrong, found) for wrong, found in TOKENIZERS.items()),
    *(_tokenizer_case(f"{EVALUATE} model", wrong, found) for wrong, found in TEMPLATES.items()),
    *(
        _case("a teacher", f"{CACHE} ALIGNED --teacher model --top-k 4", "TEACHER", wrong, found)
        for wrong, found in TEACHERS.items()
    ),
    *(
        _case("a student", f"{RUN} SHARDS --student model", "STUDENT", wrong, found)
        for wrong, found in STUDENTS.items()
    ),
    *(
        _case("evaluated", f"{EVALUATE} model --data DATA", "TEACHER", wrong, of_any("TEACHER")[wrong])
        for wrong in EVALUATED
    ),
]
