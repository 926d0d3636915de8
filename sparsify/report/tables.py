"""Words and tables as HTML."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape

NUMBERS = r"± \S+( %)?|\S+ (%|ms|tokens/s)"
WHOLE = rf"{NUMBERS}|\([^()]*\)|--[\w-]+"


def text(words: str, whole: str = WHOLE) -> str:
    """Escaped words that break between numbers and options, not inside them: 3.1614 ± 0.1414 only before the ±."""
    return re.sub(whole, r"<span>\g<0></span>", escape(words))


def dotted(escaped: str) -> str:
    """The name of a site, which may break after its dots."""
    return escaped.replace(".", ".<wbr>")


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table, first column names and the rest numbers."""
    top = "".join(f'<th scope="col">{escape(name)}</th>' for name in head)
    lines = []
    for name, *cells in rows:
        first = f'<th scope="row">{dotted(text(name))}</th>'
        lines.append(f"<tr>{first}{''.join(f'<td>{text(cell)}</td>' for cell in cells)}</tr>")
    return f"<table><thead><tr>{top}</tr></thead><tbody>{''.join(lines)}</tbody></table>"
