"""Laws of every page: it stands alone, fits a phone, follows the reader's scheme, and a stranger's text is text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from jinja2 import UndefinedError

import sra_data
import sra_train
from sra_data.pages.chart import COLOUR, Chart
from sra_data.pages.palette import OF_PAGES, PALETTE, as_css
from sra_data.pages.render import HERE, Table, render
from tests.unit.stages.report.reading import NASTY, Nesting

STEERING = "\x1b[31m\x9b2A\u202e\x07"
HOSTILE = f'{NASTY}{STEERING}"><img src=x onerror=alert(1)>{{{{ 7 * 7 }}}}'
TEMPLATES = sorted(
    path for package in (sra_data, sra_train) for path in Path(str(package.__file__)).parent.rglob("*.html")
)


def written(tmp_path: Path, body: str, **values: object) -> str:
    """A page whose content is `body`."""
    start = '{% extends "base.html" %}{% import "macros.html" as show %}{% block content %}'
    (tmp_path / "page.html").write_text(f"{start}{body}{{% endblock %}}", encoding="utf-8")
    return render(tmp_path / "page.html", **{"title": "t", **values})


def assert_it_stands_alone(text: str) -> None:
    """No script, no address but within, every tag closed."""
    found = Nesting()
    found.feed(text)
    assert (found.wrong, found.open) == ([], [])
    assert len(found.ids) == len(set(found.ids))
    assert set(found.addresses) <= {f"#{name}" for name in found.ids}
    assert not re.search(r"https?://|@import|<script|<link|<img|url\([^#]", text)


def test_what_a_stranger_wrote_is_text_wherever_a_page_puts_it(tmp_path: Path) -> None:
    chart = Chart("a", "b", HOSTILE, HOSTILE, lambda axes: axes.plot([1], label=HOSTILE) and axes.legend())
    body = (
        "{{ show.table(table) }}{{ show.notes([word]) }}{{ show.tiles([(word, word)]) }}{{ show.figure(chart) }}"
        '<p title="{{ word }}">{{ word }}</p>'
    )
    table = Table((HOSTILE, HOSTILE), [(HOSTILE, HOSTILE)], HOSTILE)
    text = written(tmp_path, body, title=HOSTILE, word=HOSTILE, table=table, chart=chart)
    assert_it_stands_alone(text)
    assert not set(STEERING[0] + STEERING[5] + "\u202e\x07") & set(text)
    assert "49" not in re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", text, flags=re.DOTALL)
    assert text.count("&lt;script&gt;") >= 10
    assert r"\x1b[31m\x9b2A\u202e\x07" in text


def test_a_value_that_a_page_was_not_given_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError):
        written(tmp_path, "{{ missing }}")


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_there_is_one_base_one_stylesheet_and_nothing_unescaped(template: Path) -> None:
    text = template.read_text(encoding="utf-8")
    if template.parent != HERE:
        assert text.startswith('{% extends "base.html" %}')
    assert "<style" not in text or template.name == "base.html"
    assert "style=" not in text
    assert "autoescape" not in text
    # of what is not escaped there is only a constant of the template itself
    assert [line for line in text.splitlines() if "|safe" in line.replace("' class=\"n\"'|safe", "")] == []


def test_pages_fit_a_phone_and_follow_the_readers_scheme(tmp_path: Path) -> None:
    text = written(tmp_path, "")
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in text
    assert "@media (prefers-color-scheme: dark)" in text
    assert "@media (max-width: 34rem)" in text
    assert as_css() in text


def test_every_colour_is_a_variable_with_a_light_and_a_dark_one() -> None:
    style = (HERE / "style.css").read_text(encoding="utf-8")
    used = set(re.findall(r"var\(--([\w-]+)\)", style)) - {"row", "between"}
    assert used <= {*PALETTE, *OF_PAGES}
    # the ground of a picture drawn for paper, and shades that serve both schemes
    assert set(re.findall(r"#[0-9a-f]{3,8}\b", style)) <= {"#fff"}
    assert all(light != dark for light, dark in (*PALETTE.values(), *OF_PAGES.values()))
    assert len(set(COLOUR.values())) == len(COLOUR)


@pytest.mark.parametrize("scheme", [0, 1])
@pytest.mark.parametrize("ground", ["paper", "card", *(f"span-{number}" for number in range(5))])
def test_words_can_be_read_on_every_ground(scheme: int, ground: str) -> None:
    """The contrast that WCAG asks of text (4.5 to 1), for ink everywhere and for soft words where they stand."""
    colours = {**OF_PAGES, **PALETTE}
    inks = ["ink", "soft"] if ground in ("paper", "card") else ["ink"]
    for ink in inks:
        assert contrast(colours[ink][scheme], colours[ground][scheme]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    """By WCAG 2: (lighter + 0.05) / (darker + 0.05) of relative luminances."""
    dark, light = sorted(map(luminance, (one, other)))
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_a_table_says_which_numbers_are_better(tmp_path: Path) -> None:
    marks = {(0, 1): "better", (1, 1): "worse"}
    table = Table(("m", "a", "b"), [("x", "-1*", ""), ("y", "1*", "")], marks=marks, is_wide=True)
    text = written(tmp_path, "{{ show.table(table) }}", table=table)
    assert '<td class="n better">-1*</td>' in text
    assert '<td class="n worse">1*</td>' in text
    assert '<div class="card wide">' in text
