"""`make release-check`: what must hold before a release, one line for each; ends with 1 where something does not.

    python -m tests.release

The wheel is built and looked into, the documentation is built strictly, links and snippets are checked, and the
licences of everything that is installed with the package are listed from its metadata.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

import sra_data

REPOSITORY = Path(__file__).resolve().parent.parent
EXTRAS = ("lora",)  # what users may ask for; the tools of developers are not given away
DOCUMENTATION_TESTS = ("test_docs_site.py", "test_snippets.py", "test_readme.py", "test_release.py")
# Licences whose terms reach what they are distributed with.
RECIPROCAL = re.compile(r"\b(?:A?GPL|GNU (?:Affero )?General Public|SSPL|EUPL)", re.IGNORECASE)
SUFFIX = re.compile(r"\.(?:py|html)$")


class Missing(Exception):
    """Something that a release lacks, in one line."""


@dataclass(frozen=True)
class Dependency:
    """A distribution that is installed with the package."""

    name: str
    version: str
    licence: str  # "" where its metadata name none


def main() -> int:
    """Check everything, even after something fails."""
    checks: tuple[Callable[[], str], ...] = (version, wheel, documentation, links, licences)
    failed = 0
    for check in checks:
        try:
            print(f"{check.__name__}: {check()}", flush=True)
        except Missing as missing:
            failed += 1
            print(f"{check.__name__}: FAILED: {missing}", flush=True)
    print(f"release-check: {failed} of {len(checks)} failed" if failed else "release-check: ready")
    return 1 if failed else 0


def version() -> str:
    """The changelog speaks of the version that would be released, or has an open section."""
    headings = re.findall(r"^## \[?([^\]\s]+)", (REPOSITORY / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE)
    if not headings or headings[0] not in ("Unreleased", sra_data.__version__):
        raise Missing(f"CHANGELOG.md begins with {headings[:1]}, the version is {sra_data.__version__}")
    return f"{sra_data.__version__}, changelog under {headings[0]}"


def wheel() -> str:
    """The wheel builds and holds what it needs, and nothing else."""
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "-w", place, str(REPOSITORY)],
            capture_output=True,
            text=True,
        )
        built = list(Path(place).glob("*.whl"))
        if done.returncode != 0 or len(built) != 1:
            raise Missing(f"no wheel: {' '.join(done.stderr.split())[-300:]}")
        with zipfile.ZipFile(built[0]) as archive:
            names = archive.namelist()
            if problems := problems_of_wheel(names):
                raise Missing("; ".join(problems))
        return f"{built[0].name}, {len(names)} files, {built[0].stat().st_size:,} bytes"


def problems_of_wheel(names: Iterable[str]) -> list[str]:
    """What the files of a wheel lack, or have too much."""
    there = set(names)
    wanted = {
        path.relative_to(REPOSITORY).as_posix()
        for package in ("sra_data", "sra_train")
        for path in (REPOSITORY / package).rglob("*")
        if SUFFIX.search(path.name)
    }
    inside = {name for name in there if ".dist-info/" not in name}
    facts = {name.partition(".dist-info/")[2] for name in there - inside}
    return [
        *(f"lacks {name}" for name in sorted(wanted - there)),
        *(f"has {name}" for name in sorted(inside - wanted) if SUFFIX.search(name)),
        *(f"lacks {name}" for name in ("METADATA", "entry_points.txt", "licenses/LICENSE") if name not in facts),
    ]


def documentation() -> str:
    """The site builds without a warning."""
    if importlib.util.find_spec("mkdocs") is None:
        raise Missing("mkdocs is not installed; run `make release-check`, which installs the extra [docs]")
    with tempfile.TemporaryDirectory() as place:
        done = subprocess.run(
            [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", place],
            cwd=REPOSITORY,
            env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
            capture_output=True,
            text=True,
        )
        if done.returncode != 0:
            raise Missing(" ".join((done.stdout + done.stderr).split())[-500:])
        return f"{len(list(Path(place).rglob('*.html')))} pages, no warning"


def links() -> str:
    """Links, command lines and the README are what they say, by their tests."""
    tests = [f"tests/unit/{name}" for name in DOCUMENTATION_TESTS]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *tests], cwd=REPOSITORY, capture_output=True, text=True
    )
    if done.returncode != 0:
        raise Missing(" ".join(done.stdout.split())[-500:])
    return "links and snippets hold"


def licences() -> str:
    """Every dependency has a licence, and none that would reach this package."""
    found = dependencies()
    for one in found:
        print(f"  {one.name} {one.version}: {one.licence or 'UNKNOWN'}")
    if problems := problems_of_licences(found):
        raise Missing("; ".join(problems))
    return f"{len(found)} dependencies, every licence known"


def problems_of_licences(found: Iterable[Dependency]) -> list[str]:
    """Dependencies without a licence, or with one whose terms reach further than themselves."""
    problems = []
    for one in found:
        if not one.licence:
            problems.append(f"{one.name}: its metadata name no licence")
        elif RECIPROCAL.search(one.licence) and "LGPL" not in one.licence and " OR " not in one.licence:
            problems.append(f"{one.name}: {one.licence}")
    return problems


def dependencies() -> list[Dependency]:
    """What is installed with the package and the extras that users ask for, and with those in turn."""
    waiting = list(_required(distribution("sra-distill"), EXTRAS))
    found: dict[str, Dependency] = {}
    while waiting:
        name, extras = waiting.pop()
        try:
            one = distribution(name)
        except PackageNotFoundError:  # for another platform, or an extra that is not installed here
            continue
        if name not in found:
            found[name] = Dependency(one.metadata["Name"], one.version, licence_of(one))
            waiting += _required(one, extras)
    return [found[name] for name in sorted(found)]


def _required(one: Distribution, extras: Iterable[str]) -> Iterator[tuple[str, frozenset[str]]]:
    """(normalised name, its extras) of what a distribution asks for here."""
    from packaging.requirements import Requirement
    from packaging.utils import canonicalize_name

    for line in one.requires or ():
        asked = Requirement(line)
        if asked.marker is None or any(asked.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            yield canonicalize_name(asked.name), frozenset(asked.extras)


def licence_of(one: Distribution) -> str:
    """The licence as a distribution's metadata have it: an expression, a classifier, or the first line of the text."""
    known = one.metadata
    classified = [
        line.rpartition(" :: ")[2] for line in known.get_all("Classifier") or () if line.startswith("License ::")
    ]
    written = (known.get("License") or "").strip().partition("\n")[0]
    return known.get("License-Expression") or "; ".join(classified) or written[:80]


if __name__ == "__main__":
    sys.exit(main())
