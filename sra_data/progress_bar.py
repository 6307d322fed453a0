"""The live bar of a piece of work, of rich's own columns: it keeps its place at 60 columns and stands on any ground.

One line has the description, the bar, the share done and the time left; a line beneath has counts, rate and fields,
and is cut at its end where it has no room.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column
from rich.text import Text

SECONDS_OF_SPEED = 600.0  # over which the time left is estimated: a step of a large model takes a minute
SHARE_OF_WIDTH = 3  # a description takes at most one of so many parts


class WorkBar(Progress):
    """One piece of work; used as a context."""

    def __init__(
        self,
        description: str,
        total: float | None,
        console: Console,
        *,
        get_time: Callable[[], float] | None = None,
    ) -> None:
        self.words = Text(style="dim", no_wrap=True, overflow="ellipsis")
        super().__init__(
            *_columns(console.width, has_total=total is not None),
            console=console,
            expand=True,
            speed_estimate_period=SECONDS_OF_SPEED,
            get_time=get_time,
        )
        self.work = self.add_task(description, total=total)

    def show(self, done: float, words: str) -> None:
        """Move the bar to `done` and say `words` beneath it.

        The time left is estimated from the steps between calls: what was done before the first is no part of it.
        """
        self.update(self.work, completed=done)
        self.words.plain = words

    def get_renderables(self) -> Iterable[RenderableType]:
        """The bar, and its words where there are any."""
        yield from super().get_renderables()
        if self.words.plain:
            yield self.words


def _columns(width: int, *, has_total: bool) -> list[ProgressColumn]:
    name = Column(no_wrap=True, overflow="ellipsis", max_width=width // SHARE_OF_WIDTH)
    columns = [TextColumn("{task.description}", markup=False, table_column=name), BarColumn(bar_width=None)]
    if has_total:
        return [*columns, TextColumn("{task.percentage:>3.0f} %", markup=False), TimeRemainingColumn()]
    return [*columns, TimeElapsedColumn()]
