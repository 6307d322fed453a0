"""What `benchmarks/train.py` trains on: shards of Dolly made by the real stages with a random teacher.

Student: GPT-2, 4 layers x 256, the real GPT-2 vocabulary. Teacher: Qwen2 of width 256 with Qwen1.5's tokenizer, as deep
as its live forward needs to be some ten times the student's. Rows are cut to 320 tokens on both sides; lengths are
Dolly's. Nothing here is measured but the teacher's depth.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import torch

MAX_TOKENS = 320
WIDTH = 256
TEACHER_MLP = 16_384  # wide, so that ten student forwards take tens of layers, not hundreds
PROBE_LAYERS = 4
TIMES_STUDENT = 10.0


def shared_material() -> Path:
    """The folder of shared data and tokenizers beside the project.

    Raises:
        SystemExit: If it is absent.
    """
    folder = Path(__file__).resolve().parent.parent.parent / "shared"
    if not (folder / "tokenizers").is_dir():
        raise SystemExit(f"benchmarks.train needs the shared tokenizers and data in {folder.name}/ beside the project")
    return folder


def student_model(num_layers: int = 4) -> Any:
    """GPT-2 in miniature with its whole vocabulary, random weights, no dropout; the same every time."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(n_layer=num_layers, n_embd=WIDTH, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0)
    config.use_cache = False
    return GPT2LMHeadModel(config).train()


def teacher_model(num_layers: int) -> Any:
    """A Qwen2 with random weights."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(1)
    config = Qwen2Config(
        vocab_size=151_936,
        hidden_size=WIDTH,
        intermediate_size=TEACHER_MLP,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config).eval()


def best_of(runs: int, work: Callable[[], object]) -> float:
    """Shortest wall time of `work` in seconds: the one the machine disturbed least."""
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return min(times)


def calibrated_layers() -> int:
    """How many teacher layers make its body some ten times the student's forward with logits."""
    ids = torch.arange(8 * MAX_TOKENS).view(8, MAX_TOKENS)
    student, teacher = student_model(), teacher_model(PROBE_LAYERS)
    with torch.no_grad():
        forward = best_of(5, lambda: student(input_ids=ids))
        body = best_of(5, lambda: teacher.model(input_ids=ids, use_cache=False))
    return max(1, round(TIMES_STUDENT * forward / (body / PROBE_LAYERS)))


def make_shards(folder: Path, *, num_examples: int) -> Path:
    """Run align and cache-teacher into `folder`/shards; the teacher stays in `folder`/teacher."""
    from transformers import AutoTokenizer

    from sra_data.stages.align.options import AlignOptions
    from sra_data.stages.align.stage import align
    from sra_data.stages.cache.options import CacheOptions
    from sra_data.stages.cache.stage import cache_teacher
    from sra_data.teacher.spec import CaptureOptions, TeacherSpec
    from sra_data.terminal import make_reporter

    shared = shared_material()
    models = {"student": (student_model(), "gpt2"), "teacher": (teacher_model(calibrated_layers()), "qwen1.5-1.8b")}
    for name, (model, tokenizer) in models.items():
        model.save_pretrained(folder / name)
        AutoTokenizer.from_pretrained(shared / "tokenizers" / tokenizer).save_pretrained(folder / name)
    data = folder / "dolly.jsonl"
    with open(shared / "data" / "dolly" / "train.jsonl", encoding="utf-8") as source:
        data.write_text("".join(islice(source, num_examples)), encoding="utf-8")
    shards = folder / "shards"
    reporter = make_reporter(quiet=True)
    align(
        AlignOptions(
            teachers=(str(folder / "teacher"),),
            students=(str(folder / "student"),),
            data=str(data),
            out=str(shards),
            dev_share=0.0,
            teacher_max_length=MAX_TOKENS,
            student_max_length=MAX_TOKENS,
            num_workers=1,
        ),
        reporter,
    )
    capture, spec = CaptureOptions(hidden_dtype="fp32"), TeacherSpec(dtype="fp32")
    cache_teacher(CacheOptions(str(shards), spec, capture=capture, batch_tokens=4096), reporter)
    shutil.rmtree(folder / "student")
    return shards
