"""The colours of pages and charts, light and dark; a page names them as CSS variables."""

from __future__ import annotations

# name of the CSS variable -> (light, dark)
PALETTE = {
    "ink": ("#1f2431", "#e7e7e3"),
    "soft": ("#666d79", "#a0a6b1"),
    "line": ("#dedfd9", "#363b46"),
    "card": ("#fffffe", "#1e2129"),
    "one": ("#1d7a8a", "#4fb8c8"),
    "two": ("#cf5560", "#f0828b"),
    "three": ("#b98119", "#e2b354"),
}
# What no chart draws with.
OF_PAGES = {
    "paper": ("#f7f7f4", "#14161b"),
    "better": ("#2f7d4f", "#6cc492"),
    "span-0": ("#d8f3dc", "#1f4a35"),
    "span-1": ("#d7e8fb", "#1d3f63"),
    "span-2": ("#fdf0c8", "#5a4a14"),
    "span-3": ("#eadcf8", "#47306a"),
    "span-4": ("#d3f1ee", "#164e4a"),
    "piece": ("#ffffff66", "#00000038"),
}


def as_css() -> str:
    """All of them as variables: light, and dark where the reader's system is."""
    colours = {**OF_PAGES, **PALETTE}
    light, dark = (" ".join(f"--{name}: {both[scheme]};" for name, both in colours.items()) for scheme in (0, 1))
    return (
        f":root {{ color-scheme: light dark; {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )
