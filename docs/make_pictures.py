"""Makes docs/pictures/report-*.png from a run's report: sirius demo, then python docs/make_pictures.py runs/demo

Needs Chromium and Pillow (which matplotlib brings along).
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image, ImageChops

PICTURES = Path(__file__).with_name("pictures")
WIDTH = 1100
# A picture by the parts of the page that it shows; without any, the page's beginning.
SHOWN = {
    "report-answer": ("header, #r0-what, #r0-results-1 > :nth-child(-n+5)", 1900),
    "report-hacking": ("#r0-evidence", 1660),
    "report-examples": ("#examples", 930),
}


def shoot(page: Path, shown: str, height: int, out: Path) -> None:
    """A part of a page as PNG: everything else is hidden, margins are cut, colours are reduced."""
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        sys.exit("no Chromium found")
    keep = "".join(f"{part.strip()} {{ display: revert !important }}" for part in shown.split(","))
    sections = {part.strip().split(" ")[0] for part in shown.split(",") if part.strip().startswith("#")}
    hidden = "".join(f":not({section})" for section in sorted(sections))
    inner = "#r0-results-1 > * { display: none }" if "#r0-results-1 >" in shown else ""
    style = (
        f"<style>section{hidden} {{ display: none }} nav, .skip, footer {{ display: none !important }} "
        f"{'' if 'header' in shown else 'header { display: none }'} {inner} {keep}</style>"
    )
    with tempfile.TemporaryDirectory() as folder:
        part = Path(folder) / "part.html"
        part.write_text(page.read_text(encoding="utf-8").replace("</head>", f"{style}</head>", 1), encoding="utf-8")
        shot = Path(folder) / "shot.png"
        subprocess.run(
            [browser, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars",
             "--disable-background-networking", f"--user-data-dir={folder}/profile", f"--window-size={WIDTH},{height}",
             f"--screenshot={shot}", part.as_uri()],
            check=True, capture_output=True,
        )  # fmt: skip
        image = Image.open(shot).convert("RGB")
    background = Image.new("RGB", image.size, image.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(image, background).getbbox() or (0, 0, *image.size)
    image = image.crop((max(left - 24, 0), max(top - 24, 0), min(right + 24, WIDTH), min(bottom + 24, height)))
    image.quantize(64).save(out, optimize=True)
    print(f"{out}: {image.size[0]} × {image.size[1]}, {out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    PICTURES.mkdir(exist_ok=True)
    for name, (shown, height) in SHOWN.items():
        shoot(Path(sys.argv[1]) / "report.html", shown, height, PICTURES / f"{name}.png")
