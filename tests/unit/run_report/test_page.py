"""The page of runs: every quantity drawn, all runs in it, nothing of a stranger's stands as markup."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sra_data.errors import ConfigError, TrainingError
from sra_data.terminal import Reporter
from sra_train.report.charts import MOST_POINTS, chart_of, charts_of, thinned
from sra_train.report.page import page
from sra_train.report.records import read_runs
from sra_train.report.samples import Sample
from sra_train.report.stage import RunReportOptions, report
from tests.unit.pages.test_pages import assert_it_stands_alone
from tests.unit.run_report.runs import NASTY, write_run

DRAWN = ["loss", "kd", "lr", "tokens_per_second", "data_wait", "peak_memory_bytes", "bits_per_byte"]


def lines_of(chart) -> list:
    axes = Figure().add_subplot()
    chart.draw(axes)
    return axes.lines


def test_every_quantity_that_was_recorded_is_drawn_once(tmp_path: Path) -> None:
    runs = read_runs([str(write_run(tmp_path / "one"))])
    charts = charts_of(runs)
    assert [chart.name for chart in charts] == DRAWN
    assert {chart.name: chart.section for chart in charts if chart.section != "losses"} == {
        "lr": "rates",
        "tokens_per_second": "work",
        "data_wait": "work",
        "peak_memory_bytes": "work",
    }
    text = page(runs, charts)
    assert text.count("<svg") == len(DRAWN)
    assert_it_stands_alone(text)


def test_a_run_is_steps_their_mean_and_the_development_split(tmp_path: Path) -> None:
    runs = read_runs([str(write_run(tmp_path / "one"))])
    steps, mean, development = lines_of(chart_of("loss", runs))
    assert steps.get_ydata()[-1] == pytest.approx(3.8)
    assert mean.get_ydata()[-1] == pytest.approx((3.8 + 3.81) / 2)  # of two steps, one of fifty parts
    assert list(development.get_xdata()) == [40, 80, 120]
    (rate,) = lines_of(chart_of("lr", runs))  # smooth by itself
    assert len(rate.get_xdata()) == 120


def test_several_runs_stand_in_one_chart_under_their_names(tmp_path: Path) -> None:
    names = [f"run-{number}" for number in range(5)]
    runs = read_runs([str(write_run(tmp_path / name, falls_by=0.01 * n)) for n, name in enumerate(names)])
    lines = lines_of(chart_of("bits_per_byte", runs))
    assert [line.get_label() for line in lines] == names
    assert len({(line.get_color(), str(line.get_linestyle())) for line in lines}) == 5
    text = page(runs, charts_of(runs))
    assert all(text.count(name) >= 3 for name in names)
    assert "What differs in the configurations" in text
    assert_it_stands_alone(text)


def test_a_long_run_does_not_make_a_large_page(tmp_path: Path) -> None:
    many = [(float(step), float(step % 2)) for step in range(1, 100_001)]
    thin = thinned(many)
    assert len(thin) <= MOST_POINTS
    assert thin[-1] == many[-1]
    assert all(0.45 <= value <= 0.55 for _, value in thin[:-2])  # means, not picks
    assert [step for step, _ in thin] == sorted(step for step, _ in thin)
    assert thinned(many[:MOST_POINTS]) == many[:MOST_POINTS]


def test_what_runs_and_students_say_is_escaped(tmp_path: Path) -> None:
    runs = read_runs([str(write_run(tmp_path / "<b>one", student={"name": NASTY}))])
    samples = [Sample(NASTY, NASTY, "\x1b[2J", {"<i>": f"{NASTY}\u202e"})]
    text = page(runs, charts_of(runs), samples, [NASTY])
    assert_it_stands_alone(text)
    assert not {"\x1b", "\u202e"} & set(text)
    assert text.count("&lt;script&gt;") >= 5


def test_options_and_places_that_cannot_be_are_refused(tmp_path: Path) -> None:
    folder = str(write_run(tmp_path / "one"))
    with pytest.raises(ConfigError, match="report: no run given; name at least one folder"):
        report(RunReportOptions(()), Reporter())
    with pytest.raises(ConfigError, match="--samples -1: must be at least 0"):
        report(RunReportOptions((folder,), samples=-1), Reporter())
    with pytest.raises(TrainingError, match=r"cannot be written \(.*\); name another file with --out"):
        report(RunReportOptions((folder,), out=str(Path(folder) / "run.json" / "page.html"), samples=0), Reporter())


def test_without_shards_or_a_model_the_page_says_why_there_are_no_answers(tmp_path: Path) -> None:
    summary = report(
        RunReportOptions((str(write_run(tmp_path / "one")),), out=str(tmp_path / "new" / "p.html")), Reporter()
    )
    (missing,) = summary.missing
    assert missing.startswith("No answers: nowhere/manifest.json: missing")
    assert re.sub(r"[`']", "", missing)[:20] in Path(summary.page).read_text()
    assert (summary.runs, summary.num_charts, summary.num_samples) == ({"one": 120}, len(DRAWN), 0)
