"""An example as one self-contained page: no script from elsewhere, no font, no network.

Each span is a small two-row table in the running text, the student's pieces above the teacher's; the page wraps like
text. Everything that came from the corpus is escaped, and every piece is isolated for right-to-left scripts.
"""

from __future__ import annotations

from html import escape

from sra_data.stages.inspect.example import Column, Inspection, Piece
from sra_data.stages.inspect.text import heading, visible
from sra_data.terminal import printable

STYLE = """
:root { color-scheme: light dark; --ink: #1f2430; --soft: #6b7280; --paper: #fbfbf9; --card: #ffffff; --line: #e3e3dd;
  --c0: #d8f3dc; --c1: #d7e8fb; --c2: #fdf0c8; --c3: #eadcf8; --c4: #d3f1ee; --gap: repeating-linear-gradient(
  45deg, transparent 0 4px, rgb(128 128 128 / .16) 4px 6px); }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e6e3; --soft: #9aa0aa; --paper: #16181d; --card: #1e2128;
  --line: #333842; --c0: #1f4a35; --c1: #1d3f63; --c2: #5a4a14; --c3: #47306a; --c4: #164e4a; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; }
main { max-width: 70rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.3rem; margin: 0 0 .25rem; overflow-wrap: anywhere; }
h2 { font-size: .95rem; margin: 2rem 0 .5rem; }
p.facts, .legend { color: var(--soft); margin: 0 0 1.25rem; }
details { background: var(--card); border: 1px solid var(--line); border-radius: 8px; padding: .6rem .9rem; }
summary { cursor: pointer; color: var(--soft); }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0 .2rem; font: 13px/1.5 ui-monospace, monospace; }
.flow { display: flex; flex-wrap: wrap; gap: 6px 4px; background: var(--card); border: 1px solid var(--line);
  border-radius: 8px; padding: 1rem; }
.span { display: inline-grid; border-radius: 5px; overflow: hidden; max-width: 100%; }
.span:hover { outline: 2px solid currentColor; }
.row { display: flex; flex-wrap: wrap; min-height: 1.75rem; padding: 1px; gap: 1px; }
.row + .row { border-top: 1px solid rgb(128 128 128 / .35); }
.piece { flex: 1 0 auto; font: 13px/1.6rem ui-monospace, monospace; padding: 0 .3rem; text-align: center;
  background: rgb(255 255 255 / .28); border-radius: 3px; unicode-bidi: isolate; white-space: pre-wrap;
  overflow-wrap: anywhere; max-width: 100%; }
@media (prefers-color-scheme: dark) { .piece { background: rgb(0 0 0 / .22); } }
.c0 { background: var(--c0); } .c1 { background: var(--c1); } .c2 { background: var(--c2); }
.c3 { background: var(--c3); }
.c4 { background: var(--c4); } .gap { background: var(--gap); color: var(--soft); }
.legend { margin-top: 1rem; font-size: .85rem; }
""".strip()

LEGEND = (
    "Upper row: the student's tokens. Lower row: the teacher's. One box is one span; hatched tokens are in no span. "
    "␣ space · ⏎ line feed · ⇥ tab · ⟨200D⟩ other invisible characters · ¹⁄₃ part of a character · #id special token"
)
NUM_COLOURS = 5


def page(inspection: Inspection) -> str:
    """The whole page."""
    title, facts = (escape(line) for line in heading(inspection))
    turns = "\n".join(
        _turn(columns, number, of=len(inspection.turns)) for number, columns in enumerate(inspection.turns, 1)
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>\n{STYLE}\n</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{title}</h1>\n<p class="facts">{facts}</p>\n'
        f"<details><summary>prompt ({len(inspection.prompt):,} characters)</summary>"
        f"<pre>{escape(printable(inspection.prompt))}</pre></details>\n"
        f'{turns}\n<p class="legend">{LEGEND}</p>\n</main>\n</body>\n</html>\n'
    )


def _turn(columns: list[Column], number: int, *, of: int) -> str:
    title = "Response" if of == 1 else f"Response {number} of {of}"
    boxes = "\n".join(_box(column) for column in columns)
    return f'<h2>{title}</h2>\n<div class="flow">\n{boxes}\n</div>'


def _box(column: Column) -> str:
    if column.number is None:
        name, tip = "gap", "in no span"
    else:
        name = f"c{column.number % NUM_COLOURS}"
        tip = f"span {column.number}: {len(column.student)} student tokens, {len(column.teacher)} teacher tokens"
    rows = "".join(f'<div class="row">{"".join(map(_piece, side))}</div>' for side in (column.student, column.teacher))
    return f'<div class="span {name}" title="{tip}">{rows}</div>'


def _piece(piece: Piece) -> str:
    return f'<span class="piece" title="token {piece.token}">{escape(visible(piece))}</span>'
