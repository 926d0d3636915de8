"""A page as a browser shows it: how wide it comes out, which words of a chart overlap, and its pixels."""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import numpy as np

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SHRINK = 8  # the picture's pixels are so many times larger than the page's
HEIGHT = 1600  # pixels of a page that are in the picture
DARK = "--blink-settings=preferredColorScheme=0"  # what `prefers-color-scheme` follows

# Every page lies in frames of several widths.  What is measured in a frame does not feel that it is drawn smaller.
SCRIPT = """
const crossing = (a, b) => Math.min(a.right, b.right) - Math.max(a.left, b.left) > 1
                        && Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top) > 1;
function measured(page) {
  page.querySelectorAll('details').forEach(fold => fold.open = true);
  const root = page.documentElement, overlaps = [], outside = [];
  let words = 0;
  for (const chart of page.querySelectorAll('svg')) {
    if (chart.parentElement.closest('svg')) continue;
    const found = [...chart.querySelectorAll('text')].map(t => [t.textContent, t.getBoundingClientRect()]);
    words += found.length;
    found.forEach(([one, a], i) => found.slice(i + 1).forEach(([other, b]) => {
      if (crossing(a, b)) overlaps.push([one, other]);
    }));
    found.forEach(([one, a]) => { if (a.left < 0 || a.right > root.clientWidth + 1) outside.push(one); });
  }
  for (const words of page.querySelectorAll('span, p, td, th, dd, dt, h1, h2, h3')) {
    if (words.closest('.wide')) continue;  // which scrolls
    const room = words.closest('article, dl > div, pre, section, body').getBoundingClientRect();
    const line = document.createRange();
    line.selectNodeContents(words);
    if (line.getBoundingClientRect().right > room.right + 1) outside.push(words.textContent);
  }
  return {wide: root.scrollWidth, fits: root.clientWidth, height: root.scrollHeight, words, overlaps, outside};
}
onload = () => {
  const all = [...document.querySelectorAll('iframe')].map(frame => measured(frame.contentDocument));
  document.getElementById('found').textContent = JSON.stringify(all);
};
"""


@dataclass(frozen=True)
class View:
    """A page at a width."""

    wide: int  # pixels that the page takes
    fits: int  # and has
    height: int
    words: int  # labels in charts
    overlaps: list[list[str]]  # labels of one chart that cover each other
    outside: list[str]  # words that leave the page, or the card that they are on
    pixels: np.ndarray[Any, Any]  # (height, width, 3) uint8, the upper part of the page


def program() -> str | None:
    """A browser that can be asked for pictures, None where there is none."""
    return next(filter(None, map(shutil.which, NAMES)), None)


def views(
    pages: Mapping[str, str], widths: Sequence[int], dark: bool, folder: Path, shrink: int = SHRINK
) -> dict[tuple[str, int], View]:
    """Every page at every width, from one start of the browser.  folder: for the picture and what the browser keeps."""
    places = [(sum(widths[:i]), row * HEIGHT, width) for row in range(len(pages)) for i, width in enumerate(widths)]
    frames = "".join(
        f'<iframe style="position:absolute;border:0;left:{x}px;top:{y}px;width:{width}px;height:{HEIGHT}px" '
        f'srcdoc="{escape(page)}"></iframe>'
        for (x, y, width), page in zip(places, (page for page in pages.values() for _ in widths), strict=True)
    )
    small = f'<div style="transform:scale({1 / shrink});transform-origin:0 0">{frames}</div>'
    (folder / "frames.html").write_text(
        f'<!DOCTYPE html><meta charset="utf-8"><body style="margin:0;overflow:hidden">{small}<pre id="found" '
        f'hidden></pre><script>{SCRIPT}</script>'
    )  # fmt: skip
    size = f"--window-size={max(500, sum(widths) // shrink)},{len(pages) * HEIGHT // shrink}"  # no window is narrower
    picture = folder / "frames.png"
    done = subprocess.run(
        [str(program()), "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
         "--disable-background-networking", "--disable-component-update", "--disable-sync", "--dump-dom", size,
         f"--screenshot={picture}", f"--user-data-dir={folder / 'profile'}", *([DARK] if dark else []),
         (folder / "frames.html").as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    found = re.search(r'<pre id="found".*?>(.*?)</pre>', done.stdout, re.DOTALL)
    assert found and found[1], done.stderr
    image = pixels(picture.read_bytes())
    parts = [image[y // shrink : (y + HEIGHT) // shrink, x // shrink : (x + width) // shrink] for x, y, width in places]
    rows = zip(json.loads(unescape(found[1])), parts, strict=True)
    keys = [(name, width) for name in pages for width in widths]
    return {key: View(**row, pixels=part) for key, (row, part) in zip(keys, rows, strict=True)}


def pixels(png: bytes) -> np.ndarray[Any, Any]:
    """An image of 8 bits a colour as (height, width, 3) uint8.  PNG specification, sections 7 and 9."""
    at, data = 8, b""
    while at < len(png):
        length, kind = struct.unpack(">I4s", png[at : at + 8])
        body = png[at + 8 : at + 8 + length]
        if kind == b"IHDR":
            width, height, depth, colour = struct.unpack(">IIBB", body[:10])
            assert depth == 8 and colour in (2, 6), "an image of another kind"
        data += body if kind == b"IDAT" else b""
        at += length + 12
    channels = 3 if colour == 2 else 4
    packed = np.frombuffer(zlib.decompress(data), np.uint8).reshape(height, 1 + width * channels)
    above = bytearray(width * channels)
    rows = []
    for line in packed:
        above = unfiltered(int(line[0]), bytearray(line[1:].tobytes()), above, channels)
        rows.append(above)
    return np.frombuffer(b"".join(rows), np.uint8).reshape(height, width, channels)[..., :3]


def unfiltered(kind: int, line: bytearray, above: bytearray, step: int) -> bytearray:
    """A line of an image from its differences to what lies to the left and above."""
    for i, byte in enumerate(line):
        left, corner = (line[i - step], above[i - step]) if i >= step else (0, 0)
        if kind == 4:
            guess = left + above[i] - corner
            near = min((left, above[i], corner), key=lambda value: abs(guess - value))
        else:
            near = (0, left, above[i], (left + above[i]) // 2)[kind]
        line[i] = (byte + near) & 255
    return line
