"""The documentation: what is made from the source is whole, no link leads nowhere, it builds without a warning."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

import sra_data
from sra_data.errors import SRAError
from tests.integration.command_lines import sra_train as sra_train_command
from tests.snippets import FENCED, REPOSITORY, pages

HOOKS = REPOSITORY / "docs" / "hooks"
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
MADE = {"docs/commands.md", "docs/messages.md"}  # while the site is built


@pytest.fixture(scope="module")
def hooks() -> Iterator[dict[str, ModuleType]]:
    """The modules that make pages."""
    names = ("commands", "messages", "notebook")
    sys.path.insert(0, str(HOOKS))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(HOOKS))
        for name in names:
            sys.modules.pop(name, None)


# ---------------------------------------------------------------------------------------------------------- messages


def test_every_error_that_is_raised_has_a_message_on_the_page(hooks: dict[str, ModuleType]) -> None:
    """Counted by another way than the page's: lines of the source that raise one."""
    messages = hooks["messages"]
    kinds = "|".join(messages.kinds_of_error())
    raised = {
        path.relative_to(REPOSITORY).as_posix()
        for path in messages.sources()
        if re.search(rf"^\s+raise ({kinds})\(", path.read_text("utf-8"), re.MULTILINE)
    }
    found = messages.messages()
    # what they raise is a list of others, or another process's
    handed_on = {"sra_data/stages/verify.py", "sra_data/stages/repair.py", "sra_train/sharding.py"}
    assert raised - {one.module for one in found} - handed_on == set()
    assert len(found) > 300
    assert len({one.anchor for one in found}) == len(found)
    page = messages.page()
    for one in found:
        assert f'<a id="{one.anchor}"></a>`` {one.text} ``' in page


def provoked(tmp_path: Path) -> Iterator[str]:
    """Lines that real refusals end in."""
    broken = tmp_path / "broken.jsonl"
    broken.write_text('{"prompt": "a"\n')
    attempts: list[Any] = [
        lambda: sra_data.align("a", "b", dev_share=7.0),
        lambda: sra_data.align("a", "b", units="one"),
        lambda: sra_data.align("a", "b", max_spans=0),
        lambda: sra_data.align("no/such", "no/such-either", out=tmp_path / "s"),
        lambda: sra_data.align([], "b"),
        lambda: sra_data.cache_teacher(tmp_path),
        lambda: sra_data.cache_teacher(tmp_path, layers=()),
        lambda: sra_data.cache_teacher(tmp_path, top_k=-1),
        lambda: sra_data.cache_teacher(tmp_path, student="x"),
    ]
    for attempt in attempts:
        with pytest.raises(SRAError) as refused:
            attempt()
        yield str(refused.value)
    for words in (
        ("--set", "training.epoch=3"),
        ("--set", "method.alpha=2"),
        ("--method", "magic"),
        ("--preset", "magic"),
        ("--teacher", "a:0.5"),
    ):
        yield sra_train_command("run", tmp_path, *words).error


def test_what_is_really_said_is_found_on_the_page(hooks: dict[str, ModuleType], tmp_path: Path) -> None:
    known = [
        re.compile(".+?".join(re.escape(part) for part in re.split(r"‹[^›]*›", one.text)), re.DOTALL)
        for one in hooks["messages"].messages()
    ]
    said = list(provoked(tmp_path))
    assert len(set(said)) == 14
    unknown = [line for line in said if not any(one.search(line) for one in known)]
    assert unknown == []


# ---------------------------------------------------------------------------------------------------------- commands


def test_the_reference_names_every_option_of_every_command_and_its_default(hooks: dict[str, ModuleType]) -> None:
    page = hooks["commands"].page()
    for program, group in hooks["commands"].groups():
        for name, command in group.commands.items():
            section = page.partition(f"\n### {program} {name}\n")[2].partition("\n### ")[0]
            assert section
            for parameter in command.params:
                assert all(
                    f"`{flag}`" in section for flag in (*parameter.opts, *parameter.secondary_opts) if "-" in flag
                )
                (row,) = [
                    line
                    for line in section.splitlines()
                    if line.startswith((f"| `{parameter.opts[0]}`", f"| `{parameter.name.upper()}`"))
                ]
                if isinstance(parameter.default, int | float) and not isinstance(parameter.default, bool):
                    assert f"| `{parameter.default}` |" in row


# ------------------------------------------------------------------------------------------------------------- links


def links() -> list[tuple[Path, str]]:
    """Every link of every page that stays in the repository."""
    return [
        (page, target)
        for page in pages()
        for target in LINK.findall(FENCED.sub("", page.read_text("utf-8")))
        if "://" not in target and not target.startswith("mailto:")
    ]


def anchors(page: Path) -> set[str]:
    """What can be linked to on a page: its headings, as GitHub and MkDocs spell them."""
    headings = re.findall(r"^#+ (.+)$", FENCED.sub("", page.read_text("utf-8")), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def test_no_link_leads_nowhere(hooks: dict[str, ModuleType]) -> None:
    made = {one.anchor for one in hooks["messages"].messages()}
    broken = []
    for page, target in links():
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        name = place.relative_to(REPOSITORY).as_posix() if place.is_relative_to(REPOSITORY) else str(place)
        if name in MADE:
            is_there = not anchor or (name == "docs/messages.md" and anchor in made)
        else:
            is_there = place.exists() and (not anchor or anchor in anchors(place))
        if not is_there:
            broken.append(f"{page.relative_to(REPOSITORY)}: {target}")
    assert broken == []
    assert len(links()) > 45


def test_every_page_is_in_the_navigation() -> None:
    settings = yaml.safe_load(re.sub(r"!!python\S*", "", (REPOSITORY / "mkdocs.yml").read_text("utf-8")))

    def named(entries: Any) -> Iterator[str]:
        for entry in entries:
            if isinstance(entry, str):
                yield entry
            else:
                for below in entry.values():
                    yield from named(below)

    listed = list(named(settings["nav"]))
    assert len(listed) == len(set(listed))
    assert {path.name for path in (REPOSITORY / "docs").glob("*.md")} <= set(listed)
    assert {Path(name).name for name in MADE} <= set(listed)


# -------------------------------------------------------------------------------------------------------------- site


def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    missing = [name for name in ("mkdocs", "material", "mkdocstrings") if importlib.util.find_spec(name) is None]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}, which is absent: pip install '.[docs]', or `make docs`")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", tmp_path / "site"],
        cwd=REPOSITORY,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},  # about mkdocs-material's own future
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "WARNING" not in done.stdout + done.stderr
    html = (tmp_path / "site" / "messages.html").read_text("utf-8")
    assert 'id="made-from-other-inputs-choose-another-folder-or-delete"' in html
    assert "sra_data.api.cache_teacher" in (tmp_path / "site" / "python.html").read_text("utf-8")
