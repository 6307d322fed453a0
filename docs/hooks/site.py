"""What MkDocs is told while it builds the site: pages made from the repository, and links that lead out of docs/.

Nothing made here is written into the repository, so that none of it can go stale: the commands come from the Typer
apps, the messages from the source, the format, the architecture and the rest from the files that are read on their
own too.
"""

from __future__ import annotations

import posixpath
import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

HERE = Path(__file__).resolve().parent
REPOSITORY = HERE.parent.parent
sys.path[:0] = [str(HERE), str(REPOSITORY)]

import commands  # noqa: E402
import messages  # noqa: E402
import notebook  # noqa: E402

# Page -> the file of the repository that it is.
COPIED = {
    "format.md": "sra_data/shards/README.md",
    "architecture.md": "ARCHITECTURE.md",
    "changelog.md": "CHANGELOG.md",
    "contributing.md": "CONTRIBUTING.md",
    "security.md": "SECURITY.md",
    "published.md": "pipelines/published/README.md",
    "slurm.md": "pipelines/slurm/README.md",
    "comparison.md": "pipelines/compare/RESULTS.md",
    "benchmarks.md": "benchmarks/results/README.md",
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    made = {
        "commands.md": commands.page(),
        "messages.md": messages.page(),
        "notebook.md": notebook.page(HERE.parent / "notebook.ipynb"),
        **{page: (REPOSITORY / place).read_text("utf-8") for page, place in COPIED.items()},
    }
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Lead every link that means a file of the repository to the page it is; where it is none, say its path."""
    name = page.file.src_uri
    place = COPIED.get(name, f"docs/{name}")
    return LINK.sub(lambda found: _link(found, posixpath.dirname(place)), markdown)


def _link(found: re.Match[str], folder: str) -> str:
    words, target = found.groups()
    path, hash_mark, anchor = target.partition("#")
    if "://" in path or target.startswith(("#", "mailto:")):
        return found[0]
    meant = posixpath.normpath(posixpath.join(folder, path))
    pages = {place: page for page, place in COPIED.items()} | {"docs/notebook.ipynb": "notebook.md"}
    if meant in pages:
        return f"[{words}]({pages[meant]}{hash_mark}{anchor})"
    if posixpath.dirname(meant) == "docs":
        return f"[{words}]({posixpath.basename(meant)}{hash_mark}{anchor})"
    assert (REPOSITORY / meant).exists(), f"a link to {meant}, which is not there"
    return f"{words} (`{meant}`)"
