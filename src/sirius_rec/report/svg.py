"""Matplotlib's SVG made fit for a page: unique ids, short paths, and colours that follow light and dark."""

from __future__ import annotations

import re
from typing import Final

import numpy as np
from markupsafe import escape
from matplotlib.colors import to_hex, to_rgb

from sirius_rec.report.plots import COLOURS, FADED, FRAME, GREY, GRID, INK, text_colour


def _variables() -> dict[str, str]:
    """Colour as Matplotlib writes it → the CSS variable that replaces it; `colour_scheme` gives their values."""
    names = {INK: "ink", GREY: "grey", FADED: "faded", FRAME: "frame", GRID: "grid", "#ffffff": "paper"}
    found = {text_colour(colour): f"t{n}" for n, colour in enumerate(COLOURS)} | {text_colour(GREY): "t-grey"}
    found |= {colour: f"c{n}" for n, colour in enumerate(COLOURS)} | names
    return {colour.lower(): f"--fig-{name}" for colour, name in found.items()}


_VARIABLES: Final = _variables()
_DARK: Final = {
    "ink": "#dddddb", "grey": "#a5a8ae", "faded": "#5d6067", "frame": "#74777e", "grid": "#33363b", "paper": "#1e2024",
    "t-grey": "#b5b8be",
}  # fmt: skip


def colour_scheme(dark: bool) -> str:
    """Declarations of the figures' CSS variables. Dark: series are lightened until they stand off the dark page."""
    lines = []
    for colour, name in _VARIABLES.items():
        key = name.removeprefix("--fig-")
        value = colour
        if dark:
            base = COLOURS[int(key[1:])] if key[1:].isdigit() else colour
            value = _DARK.get(key) or _lightened(base, 0.60 if key.startswith("t") else 0.45)
        lines.append(f"{name}: {value};")
    return " ".join(lines)


def _lightened(colour: str, luminance: float) -> str:
    """The colour mixed with white until its perceived lightness reaches `luminance` (0 black, 1 white)."""
    rgb = np.array(to_rgb(colour))
    light = float(rgb @ [0.2126, 0.7152, 0.0722])
    share = max(0.0, (luminance - light) / (1 - light))
    red, green, blue = (float(part) for part in rgb + share * (1 - rgb))
    return to_hex((red, green, blue))


def inline(svg: str, name: str, description: str) -> str:
    """The SVG for use inside a page: as wide as its column, ids prefixed by `name` so that several fit on one page.

    Colours become CSS variables of `colour_scheme`; one that is not among them stays.
    """
    text = svg[svg.index("<svg") :]
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r'(\bd=")([^"]+)', lambda m: m[1] + re.sub(r"(\.\d\d)\d+", r"\1", " ".join(m[2].split())), text)
    text = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', text)
    text = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", text)
    text = re.sub(r'(xlink:href|href)="#([^"]+)"', rf'\1="#{name}-\2"', text)
    text = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", text, count=1)
    text = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", text, count=1)
    text = re.sub(
        r"(fill|stroke): (#[0-9a-f]{6})",
        lambda m: f"{m[1]}: var({_VARIABLES[m[2]]})" if m[2] in _VARIABLES else m[0],
        text,
    )
    return text.replace("<svg", f'<svg role="img" aria-label="{escape(description)}"', 1)
