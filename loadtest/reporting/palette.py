"""The colours of reports, those of the server's live page: paper, ink, and what differs from series to series."""

from typing import NamedTuple


class Colour(NamedTuple):
    """A colour on light and on dark paper. Within the palette each is unique, so that it can be found in a drawing."""

    light: str
    dark: str


PALETTE = {
    "paper": Colour("#fbfaf6", "#111317"),
    "raised": Colour("#ffffff", "#181b21"),
    "ink": Colour("#191b20", "#ebe8e1"),
    "soft": Colour("#5d626c", "#9a9da5"),
    "line": Colour("#dedbd2", "#2a2e36"),
    "wrong": Colour("#b9442c", "#f0836a"),
    "series-0": Colour("#2f68c0", "#6da8f4"),
    "series-1": Colour("#b8431a", "#f58a55"),
    "series-2": Colour("#2f7a55", "#6dbf93"),
    "series-3": Colour("#974c98", "#d086c8"),
    "series-4": Colour("#8a6a12", "#d6b052"),
    "series-5": Colour("#bd3d4f", "#f67d82"),
    "series-6": Colour("#675cb6", "#a197e9"),
    "series-7": Colour("#3f7f86", "#7cc3c9"),
}

SERIES = tuple(colour.light for name, colour in PALETTE.items() if name.startswith("series-"))
"""Of modes, in the order in which they are shown. Neighbours can be told apart by those who do not see red or green."""

MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
"""Of modes, beside their colours."""


def css_variables() -> str:
    """The palette as CSS, dark where the reader's system is."""
    light = "".join(f" --{name}: {colour.light};" for name, colour in PALETTE.items())
    dark = "".join(f" --{name}: {colour.dark};" for name, colour in PALETTE.items())
    return (
        f":root {{ color-scheme: light dark;{light} }}\n@media (prefers-color-scheme: dark) {{ :root {{{dark} }} }}\n"
    )


def with_variables(drawing: str) -> str:
    """A drawing in light colours with variables in their places."""
    for name, colour in PALETTE.items():
        drawing = drawing.replace(colour.light, f"var(--{name})")
    return drawing
