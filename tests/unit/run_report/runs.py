"""Folders as a run leaves them, written by hand."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

NASTY = '<script>alert("1")</script>&'


def write_run(folder: Path, *, steps: int = 120, falls_by: float = 0.01, **settings: Any) -> Path:
    """A run of so many steps, measured every 40; `settings` are sections of its configuration."""
    folder.mkdir(parents=True)
    config = {
        "output_dir": str(folder),
        "data": {"shards": "nowhere"},
        "student": {"name": "org/student"},
        "method": {"name": "sra", "alpha": 0.5},
        "training": {"batch_size": 8, "learning_rate": 0.001},
        "evaluation": {"metric": "bits_per_byte"},
        **settings,
    }
    (folder / "config.yaml").write_text(json.dumps(config), encoding="utf-8")  # JSON is YAML
    about = {
        "identity": {"total_steps": 200},
        "roots": {"corpus": "ab" * 32},
        "facts": {
            "side": "s-1",
            "tokenizer": "t" * 8,
            "teachers": [{"model": f"org/{NASTY}", "weight": 1.0}],
            "sources": ["a corpus.jsonl"],
        },
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "git": {"commit": "cd" * 20, "has_changes": True},
    }
    (folder / "run.json").write_text(json.dumps(about), encoding="utf-8")
    lines: list[dict[str, Any]] = []
    for step in range(1, steps + 1):
        lines.append(
            {
                "kind": "step",
                "step": step,
                "epoch": 1,
                "loss": 5.0 - falls_by * step,
                "kd": 2.0,
                "lr": 1e-3,
                "count_spans": 3,
                "tokens": 100,
                "tokens_per_second": 50.0 + step % 2,
                "seconds": 2.0,
                "data_wait": 0.01,
                "peak_memory_bytes": 1_000_000 + step,
            }
        )
        if step % 40 == 0:
            bits = 3.0 - falls_by * step / 10 + (0.5 if step == steps else 0)
            lines.append({"kind": "evaluation", "step": step, "bits_per_byte": bits, "loss": 4.0})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return folder
