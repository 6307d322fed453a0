"""What the runnable pipelines share: headings, the commands as a user would call them, and files of examples."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

COMMANDS = Path(sys.executable).parent


def call(command: str, *arguments: object) -> None:
    """Run one of the commands as a user would, showing the line; stop the pipeline if it fails."""
    words = [command, *(str(argument) for argument in arguments)]
    print("$ " + " ".join(words), flush=True)
    done = subprocess.run([str(COMMANDS / command), *words[1:]], env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=False)
    if done.returncode != 0:
        sys.exit(done.returncode)


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}", flush=True)


def write_rows(path: Path, rows: Iterable[Mapping[str, str]]) -> None:
    """Prompt and response of every row, as JSON lines."""
    lines = (json.dumps({key: row[key] for key in ("id", "prompt", "response") if key in row}) for row in rows)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def read_rows(path: Path) -> list[dict[str, str]]:
    """The rows of a file of JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
