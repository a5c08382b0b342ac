"""Parts of an HTML page: elements, tables and bars. Every text is escaped, and control characters are made visible."""

import html
import math
from collections.abc import Iterable, Sequence
from typing import Any

from deberta_jax.terminal import printable, shorten

STYLE = """
:root { color-scheme: light; --line: #e2e8f0; --soft: #64748b; --first: #2563eb; --second: #d97706; }
* { box-sizing: border-box; }
body { font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; color: #0f172a; background: #f8fafc;
  margin: 0; }
main { max-width: 1180px; margin: 0 auto; padding: 24px 20px 60px; }
h1 { font-size: 24px; margin: 0 0 4px; overflow-wrap: anywhere; }
h2 { font-size: 18px; margin: 36px 0 10px; border-bottom: 2px solid var(--line); padding-bottom: 4px; }
h3 { font-size: 15px; margin: 0 0 6px; }
h3.above { margin-top: 18px; }
p, dd, td, th, h3 { overflow-wrap: anywhere; }
.soft { color: var(--soft); font-size: 13px; }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 340px), 1fr)); }
.pair { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)); }
.card { background: white; border: 1px solid var(--line); border-radius: 8px; padding: 12px 14px; min-width: 0; }
.card svg { width: 100%; height: auto; display: block; }
.card svg.small { max-width: 380px; margin: 0 auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; min-width: min(100%, 420px); background: white; font-size: 14px; }
th, td { text-align: left; padding: 4px 10px; border-bottom: 1px solid var(--line); vertical-align: top; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
tr.differs td { background: #fffbeb; }
.run { font-weight: 600; }
.run.first { color: var(--first); }
.run.second { color: var(--second); }
.note { background: #fef3c7; border: 1px solid #fcd34d; border-radius: 8px; padding: 8px 14px; margin: 10px 0; }
.bar { display: flex; height: 22px; border-radius: 6px; overflow: hidden; margin: 6px 0; }
.key { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px; }
.legend span { margin-right: 14px; white-space: nowrap; font-size: 13px; }
.text { line-height: 2; margin: 4px 0 10px; }
.mask { background: #dbeafe; border-radius: 4px; padding: 2px 5px; white-space: nowrap; }
.mask small { color: var(--soft); }
.judged { border-radius: 4px; padding: 2px 1px; }
.replaced { text-decoration: underline 2px; text-underline-offset: 4px; }
.wrong { color: #b91c1c; }
.right { color: #15803d; }
details summary { cursor: pointer; }
@media print { body { background: white; } .card, table { break-inside: avoid; } }
"""


class Html(str):
    """Text that is HTML already; every other text is escaped."""

    __slots__ = ()


def text(value: object) -> Html:
    """Returns a text as HTML."""
    return value if isinstance(value, Html) else Html(html.escape(printable(str(value), lines=True), quote=True))


def element(tag: str, *content: object, **attributes: str) -> Html:
    """Returns an element. A name of an attribute that is a word of Python ends with an underscore, such as class_."""
    given = "".join(f' {name.rstrip("_")}="{text(value)}"' for name, value in attributes.items() if value)
    return Html(f"<{tag}{given}>{joined(content)}</{tag}>")


def joined(parts: Iterable[object], between: str = "") -> Html:
    """Returns the parts one after the other, each as HTML."""
    return Html(between.join(map(text, parts)))


def table(head: Sequence[object], rows: Iterable[Sequence[object]], *, marked: Iterable[int] = ()) -> Html:
    """Returns a table. Numbers stand on the right.

    Args:
      head: the titles of the columns.
      rows: the cells; a float or an int is shown as `number`.
      marked: numbers of the rows that are marked as different.
    """
    rows, marks = list(rows), set(marked)
    numeric = [
        bool(rows) and all(isinstance(row[i], int | float) or row[i] is None for row in rows) for i in range(len(head))
    ]

    def cell(tag: str, value: object, column: int) -> Html:
        shown = number(value) if isinstance(value, int | float) else "-" if value is None else value
        is_number = numeric[column] or isinstance(value, int | float)
        return element(tag, shown, class_="number" if is_number else "")

    titles = element("tr", *(element("th", title, class_="number" * numeric[i]) for i, title in enumerate(head)))
    body = [
        element("tr", *(cell("td", value, i) for i, value in enumerate(row)), class_="differs" * (index in marks))
        for index, row in enumerate(rows)
    ]
    return element("div", element("table", element("thead", titles), element("tbody", *body)), class_="scroll")


def number(value: float) -> str:
    """Returns a number for people: whole numbers with commas, others with four digits."""
    if isinstance(value, int):
        return f"{value:,}"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "∞" if value > 0 else "-∞"
    if value and abs(value) < 1e-3:
        return f"{value:.2e}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def setting(value: Any) -> str:
    """Returns the value of a setting as it is shown."""
    if value is None:
        return "-"
    shown = " ".join(map(str, value)) if isinstance(value, list) else str(value)
    return shorten(shown, 300) or "-"


def page(title: str, body: Iterable[object]) -> str:
    """Returns a whole page, which refers to nothing outside of it."""
    # The policy forbids every request, also one that a name in the data could cause.
    policy = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{text(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        + "\n".join(map(text, body))
        + "\n</main>\n</body>\n</html>\n"
    )
