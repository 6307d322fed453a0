"""What `make release-check` would stop a release for."""

from __future__ import annotations

from importlib.metadata import Distribution
from pathlib import Path

import pytest

from tests import release
from tests.release import Dependency, Missing, licence_of, problems_of_licences, problems_of_wheel

WHOLE = [
    path.relative_to(release.REPOSITORY).as_posix()
    for package in ("sra_data", "sra_train")
    for path in (release.REPOSITORY / package).rglob("*")
    if path.suffix in (".py", ".html")
]
FACTS = [f"sra_distill-0.1.0.dist-info/{name}" for name in ("METADATA", "entry_points.txt", "licenses/LICENSE")]


def test_a_whole_wheel_has_no_problem_and_each_thing_it_lacks_is_named() -> None:
    assert problems_of_wheel([*WHOLE, *FACTS]) == []
    assert "sra_train/compare/page.html" in WHOLE
    for name in ("sra_train/compare/page.html", "sra_data/api.py"):
        assert problems_of_wheel([one for one in (*WHOLE, *FACTS) if one != name]) == [f"lacks {name}"]
    assert problems_of_wheel([*WHOLE, *FACTS[:-1]]) == ["lacks licenses/LICENSE"]
    assert problems_of_wheel([*WHOLE, *FACTS, "tests/release.py"]) == ["has tests/release.py"]


@pytest.mark.parametrize(
    ("licence", "is_problem"),
    [
        ("MIT", False),
        ("Apache-2.0 AND MIT", False),
        ("LGPL-3.0-or-later", False),
        ("GPL-2.0-only OR MIT", False),
        ("GPL-3.0-only", True),
        ("GNU Affero General Public License v3", True),
        ("", True),
    ],
)
def test_a_licence_that_reaches_further_or_is_unknown_stops_a_release(licence: str, is_problem: bool) -> None:
    assert bool(problems_of_licences([Dependency("one", "1.0", licence)])) is is_problem


def test_a_licence_is_read_from_expression_classifier_or_text(tmp_path: Path) -> None:
    def made(*lines: str) -> Distribution:
        folder = tmp_path / "one-1.0.dist-info"
        folder.mkdir(exist_ok=True)
        (folder / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", "Name: one", "Version: 1.0", *lines, ""]))
        return Distribution.at(folder)

    assert licence_of(made("License-Expression: MIT", "License: something")) == "MIT"
    assert licence_of(made("Classifier: License :: OSI Approved :: BSD License")) == "BSD License"
    assert licence_of(made("License: Apache 2.0")) == "Apache 2.0"
    assert licence_of(made()) == ""


def test_the_changelog_belongs_to_the_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert release.version().startswith("0.1.0, changelog under ")
    monkeypatch.setattr(release, "REPOSITORY", tmp_path)
    (tmp_path / "CHANGELOG.md").write_text("# Changelog\n\n## 0.0.9\n")
    with pytest.raises(Missing, match=r"begins with \['0\.0\.9'\], the version is 0\.1\.0"):
        release.version()


def test_every_dependency_here_has_a_licence_that_allows_giving_this_away() -> None:
    try:
        found = release.dependencies()
    except release.PackageNotFoundError:
        pytest.skip("needs the package installed, and not only on the path")
    names = {one.name.lower() for one in found}
    assert {"torch", "transformers", "huggingface_hub", "pyarrow"} <= {name.replace("-", "_") for name in names}
    assert problems_of_licences(found) == []
