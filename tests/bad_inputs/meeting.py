"""One bad input met: the command in a forked process, its answer, and whether the folder is what it was."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import stat
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from sra_data.terminal import LONGEST_LINE
from tests.bad_inputs.case import Case
from tests.crash.obstacles import become_nobody
from tests.crash.process import Ended, carried_out
from tests.crash.world import World

LONGEST = LONGEST_LINE + len("error: ")  # characters: a line to be read, not the value it is about
SECONDS = 120  # of a processor, for one refusal
MEMORY = 24 << 30  # bytes of addresses; a refusal needs far less, whatever a file says of its size
UNFINISHED = re.compile(r"\.tmp$|^\.(writing|replaced|dropped)-")


@dataclass(frozen=True)
class Met:
    """What a command said over a bad input, and what is wrong with that and with what it left, a line each."""

    ended: Ended
    answer: list[str]
    left: list[str]


def meet(case: Case, world: World) -> Met:
    """Make a bad input, call the command on it, and look at its answer and at the folder."""
    place = world.root / "place"
    _clear(place)
    place.mkdir()
    place.chmod(0o777)
    _apart(lambda: case.prepare(place, world), case.name)
    before, around = contents(place), stamps(world.root, but=place)
    ended = carried_out(case.words(world), world.log, lambda: _go(place, case.is_nobody))
    after = contents(place)
    changed = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    wrong = [name for name in changed if not may_leave(case, name)]
    left = [f"left or changed {len(wrong)}: {', '.join(wrong[:4])}"] if wrong else []
    if stamps(world.root, but=place) != around:
        left.append("something outside its folder was changed")
        restore(world)
    _clear(place)
    return Met(ended, answered_wrongly(case, ended), left)


def keep(world: World) -> None:
    """Make everything readable for all, and keep a copy of what the commands are given."""
    for path in (world.root, *world.root.rglob("*")):
        path.chmod(path.stat().st_mode | (0o555 if path.is_dir() else 0o444))
    shutil.copytree(world.root / "whole", world.root / "kept")


def restore(world: World) -> None:
    """Give the next case what the last one was given."""
    shutil.rmtree(world.root / "whole")
    shutil.copytree(world.root / "kept", world.root / "whole")


def _apart(work: Callable[[], object], name: str) -> None:
    """Do something in a process of its own: this one goes on forking, and may have started no threads."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError(f"{name}: this input could not be made")


def _go(place: Path, is_nobody: bool) -> None:
    """In the forked process: bounds, and the folder it works in."""
    resource.setrlimit(resource.RLIMIT_CPU, (SECONDS, SECONDS))
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    os.chdir(place)
    if is_nobody:
        become_nobody()


def answered_wrongly(case: Case, ended: Ended) -> list[str]:
    """What an answer lacks of being one line, with the right exit code, that names what it is about."""
    if ended.code != case.code or "Traceback" in ended.said:
        return [f"not refused with {case.code}: {ended.last_words}"]
    lines = ended.said.strip().splitlines()
    wrong = [f"a line of {len(line)} characters" for line in lines if len(line) > LONGEST]
    if len(lines) != 1 or not lines[0].startswith("error: "):
        wrong.append(f"not one line: {ended.last_words}")
    missing = [word for word in case.says if word not in ended.said]
    return wrong + [f"does not say {word!r}: {ended.last_words}" for word in missing]


def may_leave(case: Case, name: str) -> bool:
    """Whether a name is one of those a command documents; what only a process at work has is none."""
    return not UNFINISHED.search(Path(name).name) and any(fnmatch(name, pattern) for pattern in case.leaves)


def contents(folder: Path) -> dict[str, str]:
    """Everything below a folder: kind, mode and content, by name."""
    return {str(path.relative_to(folder)): _content(path) for path in sorted(folder.rglob("*"))}


def _content(path: Path) -> str:
    said = path.lstat()
    if stat.S_ISLNK(said.st_mode):
        return f"link to {os.readlink(path)}"
    if stat.S_ISREG(said.st_mode):
        return f"{said.st_mode:o} {hashlib.sha256(path.read_bytes()).hexdigest()}"
    return f"{said.st_mode:o}"


def stamps(root: Path, *, but: Path) -> dict[str, tuple[int, int, int]]:
    """Size, mode and last change of every file that belongs to no case."""
    found: dict[str, tuple[int, int, int]] = {}
    for folder, names, files in os.walk(root):
        names[:] = [name for name in names if Path(folder) / name != but]
        for name in (*names, *files):
            path = Path(folder) / name
            said = path.lstat()
            if not (Path(folder) == root and name.startswith("log")):
                found[str(path)] = (said.st_size, said.st_mode, said.st_mtime_ns)
    return found


def _clear(place: Path) -> None:
    """Delete it, whatever a case has forbidden."""
    for folder, names, _ in os.walk(place):
        for name in names:
            path = Path(folder) / name
            if not path.is_symlink():
                path.chmod(0o755)
    shutil.rmtree(place, ignore_errors=True)
