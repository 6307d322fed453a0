"""Laws of `report`: one page that needs nothing else, with numbers that are those of the shards."""

from __future__ import annotations

import json
import re
import shutil
from collections import Counter
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest

from sra_data.errors import ConfigError, ShardError
from sra_data.pages.chart import COLOUR, Chart, percent, power, short_bytes
from sra_data.shards.store import Manifest, ShardSet, record
from sra_data.stages.align.counts import LARGEST_SHOWN, SideCounts
from sra_data.stages.report import sample as report_sample
from sra_data.stages.report.facts import CorpusFacts, ReportFacts
from sra_data.stages.report.page import page
from sra_data.stages.report.plots import charts_of, length_edges
from sra_data.stages.report.sample import SHARES, PagesSample, concentration, mass_of_spans
from sra_data.stages.report.stage import ReportOptions, report
from sra_data.terminal import Reporter
from tests.integration.command_lines import sra_data
from tests.unit.stages.report.reading import NASTY, Nesting, alignment_of, gathered, pages_of


@pytest.fixture(scope="module")
def drawn(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[Path]]:
    """The whole page as the command writes it, and its pictures."""
    out = tmp_path_factory.mktemp("out") / "new" / "report.html"
    answer = sra_data("report", shards, "--out", out, "--json")
    assert answer.exit_code == 0, answer.error
    said = json.loads(answer.output)
    assert said["page"] == str(out)
    assert said["missing"] == []
    return out.read_text(encoding="utf-8"), [Path(picture) for picture in said["pictures"]]


def test_the_page_needs_nothing_else_and_is_well_formed(drawn: tuple[str, list[Path]]) -> None:
    text, _ = drawn
    found = Nesting()
    found.feed(text)
    assert (found.wrong, found.open) == ([], [])
    assert len(found.ids) == len(set(found.ids))
    assert set(found.addresses) <= {f"#{name}" for name in found.ids}
    assert set(re.findall(r"url\(#([^)]+)\)", text)) <= set(found.ids)
    assert not re.search(r"https?://|@import|<script|<link|url\([^#]", text)
    assert text.count("<svg") == text.count("<figure>") == 10


def test_charts_take_their_colours_from_the_page(drawn: tuple[str, list[Path]]) -> None:
    text, _ = drawn
    assert "prefers-color-scheme: dark" in text
    body = text[text.index("<body>") :]
    assert not re.search(r"#[0-9a-f]{6}\b", body)
    assert {f"var(--{name})" for name in ("ink", "soft", "line", "one", "two", "three")} <= set(
        re.findall(r"var\(--\w+\)", body)
    )
    assert len(set(COLOUR.values())) == len(COLOUR)


def test_the_pictures_are_beside_the_page(drawn: tuple[str, list[Path]]) -> None:
    from matplotlib.image import imread

    _, pictures = drawn
    assert len(pictures) == 10
    assert {path.parent.name for path in pictures} == {"report-pictures"}
    for path in pictures:
        pixels = imread(path)
        assert pixels.shape[1] == round(5.4 * 160)
        assert pixels[..., :3].std() > 0.01  # something is drawn


def test_what_the_user_wrote_is_escaped(shards: Path) -> None:
    facts = gathered(shards)
    split, _ = pages_of(facts).sample.losses[NASTY]
    pages_of(facts).sample.losses[NASTY] = (split, 99.0)  # so that it is among the hardest
    text = page(facts, [])
    assert "<script" not in text
    assert "&lt;script&gt;alert(&#34;1&#34;)&lt;/script&gt;&amp;" in text
    assert "&lt;b&gt;train.jsonl (1 file)" in text


def test_the_numbers_are_those_of_the_shards(shards: Path) -> None:
    facts = gathered(shards)
    assert facts.missing == []
    with ShardSet.open(shards) as opened:
        pair, corpus = opened.choose_pair(), opened.corpus.read(range(30))
        said = opened.teacher(opened.choose_teacher()).read(range(30))
        rows = {name: opened.side(name).read(range(30)) for name in (pair.teacher, pair.student)}
        aligned = pair.read(range(30))
    taught = rows[pair.teacher]
    fine = [number for number in range(30) if taught[number].status == "ok"]
    assert len(fine) == 28
    assert facts.corpus.num_examples == 30
    assert sum(size for _, size in facts.corpus.splits.values()) == sum(row.num_bytes for row in corpus)
    assert [side.name for side in facts.sides] == [pair.teacher, pair.student]
    for side in facts.sides:
        assert sum(examples for examples, _, _ in side.splits.values()) == 28
        assert sum(tokens for _, tokens, _ in side.splits.values()) == side.counts.tokens
        assert side.counts.tokens == sum(len(row.ids) for row in rows[side.name])
        assert side.counts.statuses["skipped:overlong"] == 2
    assert alignment_of(facts).counts.spans == sum(len(row.student_spans) for row in aligned)
    shown = {length: str(length) if length < LARGEST_SHOWN else f"{LARGEST_SHOWN}+" for length in range(200)}
    lengths = [np.diff(both, axis=1)[:, 0] for row in aligned for both in (row.student_spans, row.teacher_spans)]
    pairs = zip(np.concatenate(lengths[::2]).tolist(), np.concatenate(lengths[1::2]).tolist(), strict=True)
    assert alignment_of(facts).sizes == Counter(f"{shown[student]}:{shown[teacher]}" for student, teacher in pairs)
    pages = pages_of(facts)
    sample = pages.sample
    assert sample.num_examples == 28
    assert sample.num_positions == pages.num_positions == sum(row.num_positions for row in taught)
    for number in fine:
        split, loss = sample.losses[corpus[number].id]
        assert split == corpus[number].split
        assert loss == pytest.approx(-np.nanmean(said[number].next_log_prob), rel=1e-6)
    assert {name: int(counts.sum()) for name, counts in sample.tails.items()} == dict.fromkeys(
        (1.0, 2.0), sample.num_positions
    )
    mean = np.mean([float(said[number].attention[3].sum()) for number in fine])
    assert sample.response_mass / sample.attended == pytest.approx(mean)
    files = sum(path.stat().st_size for path in (shards / "teachers" / pages.name).glob("*.safetensors"))
    parts = sum(path.stat().st_size for path in (shards / "teachers" / pages.name).glob("part-*.parquet"))
    # Footers and the lengths before straight values are in no column.
    assert files + 0.8 * parts < sum(pages.bytes_by_column.values()) <= files + parts


def test_salience_of_a_span_is_its_tokens_attention_over_the_responses(shards: Path) -> None:
    facts = gathered(shards)
    expected = np.zeros(report_sample.PLACES)
    with ShardSet.open(shards) as opened:
        said, aligned = opened.teacher(opened.choose_teacher()), opened.choose_pair()
        for teacher, alignment in zip(said.read(range(30)), aligned.read(range(30)), strict=True):
            token_mass = dict(zip(teacher.positions.tolist(), teacher.attention[3].tolist(), strict=True))
            mass = [sum(token_mass[t] for t in range(a, b)) for a, b in alignment.teacher_spans.tolist()]
            for place, one in enumerate(mass):
                expected[place * report_sample.PLACES // len(mass)] += one / sum(mass) * len(mass)
    np.testing.assert_allclose(pages_of(facts).sample.salience, expected, rtol=1e-5)


def test_pages_by_span_give_the_same_salience(shards: Path, early: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(early, tmp_path / "shards"))
    answer = sra_data("cache-teacher", copy, "--granularity", "span", "--top-k", 8, "--device", "cpu")
    assert answer.exit_code == 0, answer.error
    by_token, by_span = gathered(shards), gathered(copy)
    np.testing.assert_allclose(pages_of(by_span).sample.salience, pages_of(by_token).sample.salience, rtol=1e-4)
    assert pages_of(by_span).num_positions == alignment_of(by_token).counts.spans
    assert "teacher_loss" not in [chart.name for chart in charts_of(by_span)]
    assert "<td>bytes per span</td>" in page(by_span, [])
    assert "<td>bytes per position</td>" in page(by_token, [])


def test_mass_of_spans_leaves_out_tokens_between_them() -> None:
    positions = np.array([3, 4, 5, 9, 10], np.int32)
    attention = np.array([0.1, 0.2, 0.3, 0.15, 0.05])
    spans = np.array([[4, 6], [10, 11]], np.int32)
    np.testing.assert_allclose(mass_of_spans(attention, positions, spans), [0.5, 0.05])


def test_concentration_rises_from_nothing_to_all_and_lies_above_an_even_share() -> None:
    even = concentration(np.full(8, 1 / 8))
    np.testing.assert_allclose(even, SHARES)
    one = concentration(np.array([0.0, 1.0, 0.0, 0.0]))
    assert one[0] == 0
    assert one[-1] == pytest.approx(1)
    assert (one >= SHARES - 1e-12).all()
    assert np.interp(0.25, SHARES, one) == pytest.approx(1, abs=0.05)


def test_reading_in_larger_steps_gives_the_same(shards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = gathered(shards)
    monkeypatch.setattr(report_sample, "ROWS_AT_ONCE", 3)
    steps = gathered(shards)
    assert pages_of(steps).sample.losses == pages_of(whole).sample.losses
    np.testing.assert_allclose(pages_of(steps).sample.concentration, pages_of(whole).sample.concentration)


def test_no_more_examples_than_asked_are_read_and_the_page_says_how_many(shards: Path) -> None:
    facts = gathered(shards, sample=5)
    sample = pages_of(facts).sample
    assert sample.num_examples == len(sample.losses) == 5
    assert sample.num_positions < pages_of(facts).num_positions
    expected = f"drawn from 5 examples ({sample.num_positions:,} of {pages_of(facts).num_positions:,} positions)"
    assert expected in page(facts, [])


def test_examples_that_failed_are_left_out_and_counted(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    (teacher,) = Manifest.load(copy).names("teachers")
    record(copy, f"teachers/{teacher}", failed_examples=["example-4"])
    facts = gathered(copy)
    assert "example-4" not in pages_of(facts).sample.losses
    assert "<td>NaN or infinity</td>" in page(facts, [])


def test_before_the_teachers_pages_it_says_what_is_missing(early: Path, tmp_path: Path) -> None:
    summary = report(ReportOptions(str(early), str(tmp_path / "early.html")), Reporter())
    (missing,) = summary.missing
    assert "sra-data cache-teacher" in missing
    assert missing in "\n".join(summary.lines())
    text = Path(summary.page).read_text()
    assert "No teacher&#39;s pages yet: run `sra-data cache-teacher" in text
    assert 'id="pages"' not in text
    assert "Length of the examples" in text
    assert summary.num_sampled == 0
    assert len(summary.pictures) == 4


def test_pages_that_are_damaged_are_refused_not_called_missing(shards: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    (part,) = (copy / "teachers").glob("*/part-00000.parquet")
    content = bytearray(part.read_bytes())
    content[-40] ^= 1
    part.write_bytes(content)
    with pytest.raises(ShardError, match="damaged"):
        gathered(copy)


def test_skips_are_listed_by_reason_once(early: Path) -> None:
    text = page(gathered(early), [])
    skips = text[text.index('id="skips"') :]
    with ShardSet.open(early) as opened:
        sides = opened.manifest.names("sides")
    for side in sides:
        assert f'<td>overlong</td><td class="n">{side}</td><td class="n">2</td><td class="n">6.7%</td>' in skips
    assert skips.count("<td>overlong</td>") == len(sides)
    assert "overlong skipped" not in skips


def test_a_corpus_with_nothing_but_skips_is_a_page_too(early: Path) -> None:
    facts = gathered(early)
    empty = np.zeros(0, np.int32)
    counts = SideCounts(statuses=Counter({"skipped:<b>": 3}))
    nothing = {"counts": counts, "splits": {"train": (0, 0, 0)}, "lengths": empty, "positions": empty}
    sides = [replace(side, **nothing) for side in facts.sides]
    bare = ReportFacts("x", CorpusFacts(facts.corpus.facts, {"train": (3, 0)}), sides, [], [], ["No alignment yet."])
    assert charts_of(bare) == []
    text = page(bare, [])
    assert "<td>&lt;b&gt;</td>" in text
    assert "No alignment yet." in text


def test_options_and_places_that_cannot_be_are_refused(early: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--sample 0: must be at least 1"):
        report(ReportOptions(str(early), sample=0), Reporter())
    with pytest.raises(ShardError, match="run `sra-data align` first"):
        report(ReportOptions(str(tmp_path / "nowhere")), Reporter())
    (tmp_path / "file").write_text("")
    with pytest.raises(ShardError, match=r"cannot be written .*; name another file with --out"):
        report(ReportOptions(str(early), out=str(tmp_path / "file" / "report.html")), Reporter())


def test_what_the_pages_do_not_hold_is_not_drawn(shards: Path) -> None:
    facts = gathered(shards)
    pages = pages_of(facts)
    bare = replace(pages, facts={**pages.facts, "faithfulness": {"examples": 0}}, sample=PagesSample())
    names = [chart.name for chart in charts_of(replace(facts, pages=[bare])) if chart.section == "pages"]
    assert names == ["cache_bytes"]
    assert "Faithfulness" not in page(replace(facts, pages=[bare]), [])


@pytest.mark.parametrize(("longest", "is_log"), [(200, False), (4000, True)])
def test_long_tails_are_shown_on_a_logarithmic_scale(longest: int, is_log: bool) -> None:
    lengths = np.array([50, 80, 100, 120, longest])
    edges, found = length_edges(lengths)
    assert found == is_log
    assert np.histogram(lengths, edges)[0].sum() == len(lengths)
    assert (np.diff(edges) > 0).all()
    assert np.histogram(np.array([7]), length_edges(np.array([7]))[0])[0].sum() == 1


def test_numbers_on_axes_are_short() -> None:
    assert [percent(share) for share in (0.0, 0.0004, 0.004, 0.0994, 0.0996, 0.473)] == [
        "0.0%",
        "<0.1%",
        "0.4%",
        "9.9%",
        "10%",
        "47%",
    ]
    assert [power(value) for value in (1e-6, 0.01, 1, 2000)] == ["10⁻⁶", "0.01", "1", "2,000"]
    assert [short_bytes(count) for count in (0, 999, 45_300_000, 2.5e13)] == ["0 B", "999 B", "45.3 MB", "25 TB"]


def test_a_charts_title_is_text_whatever_stands_in_it() -> None:
    nasty = f'{NASTY}\\1 $\\frac$ "'
    svg = Chart("a", "sides", nasty, "", lambda axes: axes.plot([1], label=nasty) and axes.legend()).svg()
    assert "<script" not in svg
    assert f'aria-label="{escape(nasty)}"' in svg
