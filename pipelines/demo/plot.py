"""The demo's picture: how the two students learned, and where all three models ended."""

from __future__ import annotations

import json
from pathlib import Path

TEACHER, CE_ONLY, SRA = "#6b7280", "#d97706", "#2563eb"


def draw(scores: dict[str, float], *, runs: dict[str, Path], path: Path) -> Path:
    """Draw development bits per byte by step and the test bars; write a PNG.

    Args:
        scores: Bits per byte by model: teacher, student with CE only, student with SRA.
        runs: Run folder by label; each holds a ``metrics.jsonl``.
        path: The PNG to write.

    Returns:
        The path written, absolute.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.2), gridspec_kw={"width_ratios": [3, 2]})
    for (label, folder), color in zip(runs.items(), (CE_ONLY, SRA), strict=True):
        steps, values = development_curve(folder)
        left.plot(steps, values, label=label, color=color, linewidth=2)
    left.set(xlabel="step", ylabel="development bits per byte", title="Learning")
    left.legend(frameon=False)
    bars = right.barh(list(scores), list(scores.values()), color=[TEACHER, CE_ONLY, SRA])
    right.bar_label(bars, fmt="%.3f", padding=4)
    right.invert_yaxis()
    right.set(xlabel="bits per byte (lower is better)", title="Held-out documentation")
    right.set_xlim(0, max(scores.values()) * 1.18)
    for axis in (left, right):
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
    return path.resolve()


def development_curve(folder: Path) -> tuple[list[int], list[float]]:
    """Steps and development bits per byte that a run wrote down."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    measured = [row for row in rows if row["kind"] == "evaluation"]
    return [row["step"] for row in measured], [row["bits_per_byte"] for row in measured]
