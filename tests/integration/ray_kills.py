"""Workers whose commits are noted, and that are killed between a part's name and its receipt: actors import this."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from sra_data.engines import Work
from sra_data.shards import claims

_one_at_a_time = threading.Lock()  # align writes several parts at once, and a kill may not fall between two lines here


@dataclass(frozen=True)
class Committing:
    """Makes the workers that it is given, in processes that leave notes of themselves.

    Attributes:
        make_worker: Makes them.
        notes: A folder: `workers` has a line for each of them, `commits` one for each receipt.
        deaths: How many of them are killed at a commit, all processes together.
    """

    make_worker: Callable[[], Work]
    notes: Path
    deaths: int = 0

    def __call__(self) -> Work:
        note(self.notes / "workers", f"{os.getpid()} {_node()}")
        if not isinstance(claims.publish, _Publish):
            claims.publish = _Publish(claims.publish, self)
        return self.make_worker()


@dataclass(frozen=True)
class _Publish:
    """Gives a receipt its name: its part is there by now."""

    real: Callable[[IO[bytes], Path], None]
    of: Committing

    def __call__(self, file: IO[bytes], path: Path) -> None:
        with _one_at_a_time:
            if any(_is_first(self.of.notes / f"death-{number}") for number in range(self.of.deaths)):
                os.kill(os.getpid(), signal.SIGKILL)
            self.real(file, path)
            note(self.of.notes / "commits", "/".join(path.parts[-3:]))


def _node() -> str:
    """The machine of the cluster, where this is an actor."""
    import ray

    return str(ray.get_runtime_context().get_node_id()) if ray.is_initialized() else "here"


def _is_first(path: Path) -> bool:
    """Whether nobody has been here before."""
    try:
        path.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def note(path: Path, line: str) -> None:
    """Append a line in one piece."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(handle, f"{line}\n".encode())
    os.close(handle)


def noted(path: Path) -> list[list[str]]:
    """The words of each line."""
    return [line.split() for line in path.read_text("utf-8").splitlines()] if path.exists() else []


def hooked(run_units: Any, notes: Path, *, deaths: int = 0, after: Callable[[int], object] = lambda count: None) -> Any:
    """An engine's `run_units` whose workers are `Committing`; `after` is called when so many units have been told."""

    def run(units: Any, make_worker: Any, **rest: Any) -> Any:
        for count, done in enumerate(run_units(units, Committing(make_worker, notes, deaths), **rest), 1):
            yield done
            after(count)

    return run
