"""The HTML of reports: one page without script and without anything from outside, for phones, screens and paper."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_CSS = """
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 1rem; background: #fff; color: #1a1a1a;
  font: 1rem/1.5 system-ui, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: .5rem 0 .25rem; }
h2 { font-size: 1.25rem; margin: 2.5rem 0 .5rem; padding-top: .5rem; border-top: 1px solid #bbb; }
h3 { font-size: 1.05rem; margin: 1.5rem 0 .25rem; }
p { margin: .5rem 0; max-width: 46rem; }
a { color: #00548a; }
nav a { display: inline-block; margin-right: 1rem; padding: .25rem 0; }
dl { display: grid; grid-template-columns: minmax(5.5rem, max-content) 1fr; gap: .15rem 1rem; margin: 1rem 0; }
dt { color: #555; }
dd { margin: 0; min-width: 0; }
code { font: .875em ui-monospace, SFMono-Regular, Consolas, monospace; background: #f3f3f3; padding: .1em .3em; }
.scroll { overflow-x: auto; margin: .75rem 0; }
.scroll:focus-visible { outline: 2px solid #0072b2; }
table { border-collapse: separate; border-spacing: 0; font-size: .9rem; font-variant-numeric: tabular-nums; }
.caption { margin: 1.25rem 0 -.5rem; color: #555; break-after: avoid; }
th, td { padding: .25rem .75rem .25rem 0; line-height: 1.25rem; text-align: left; vertical-align: top;
  border-top: 1px solid #ddd; }
thead th { border-top: 0; border-bottom: 1px solid #555; vertical-align: bottom; }
tbody tr:first-child > * { border-top-color: #555; }
tbody tr:last-child > * { border-bottom: 1px solid #ddd; }
th[scope=row] { font-weight: 600; position: sticky; left: 0; background: #fff; max-width: 40vw; }
.n { text-align: right; white-space: nowrap; }
.interval, .missing { color: #555; font-size: .85em; }
.interval { white-space: nowrap; }
.missing { white-space: normal; display: inline-block; min-width: 8.5rem; }
thead .n { white-space: normal; }
.words { display: inline-block; min-width: 15rem; overflow-wrap: anywhere; }
.stacked { display: block; max-width: 46rem; }
.stacked dt { color: inherit; font-weight: 600; }
.stacked dd { margin: 0 0 .5rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1rem 2rem; }
figure { margin: .5rem 0; min-width: 0; max-width: 34rem; }
figure svg { display: block; width: 100%; height: auto; }
figcaption { font-size: .875rem; color: #444; }
@media print {
  @page { margin: 14mm; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  nav { display: none; }
  h2 { border-top: 0; margin-top: 8mm; }
  h2, h3 { break-after: avoid; }
  figure, tr, dl { break-inside: avoid; }
  thead { display: table-header-group; }
  .scroll { overflow: visible; }
  table { font-size: 8pt; width: 100%; }
  th, td { padding-right: .4rem; }
  th[scope=row] { position: static; }
  .words, .missing { min-width: 0; }
  .plots { grid-template-columns: 1fr 1fr; gap: 4mm 8mm; }
}
"""


class Html(str):
    """Text that is HTML already; every other string is escaped."""


def html(content: object) -> str:
    """Escapes what is not `Html`."""
    return content if isinstance(content, Html) else escape(str(content))


def page(title: str, body: Iterable[str]) -> str:
    """A whole document. The policy in it forbids scripts and anything from the network, should a name slip through."""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; "
        'img-src data:">\n<link rel="icon" href="data:,">\n'
        f"<title>{escape(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{''.join(body)}</body>\n</html>\n"
    )


def section(anchor: str, title: str, *parts: str) -> Html:
    """A heading that the page's navigation leads to, and what stands under it."""
    return Html(f'<section id="{escape(anchor)}">\n<h2>{html(title)}</h2>\n{"".join(parts)}</section>\n')


def paragraph(*parts: object) -> Html:
    """A paragraph."""
    return Html(f"<p>{''.join(map(html, parts))}</p>\n")


def code(text: str) -> Html:
    """A command or name to type."""
    return Html(f"<code>{escape(text)}</code>")


def link(address: str, text: str) -> Html:
    """A link; `address` is relative to the page, with what has a meaning in addresses quoted already."""
    return Html(f'<a href="{escape(address)}">{escape(text)}</a>')


def with_note(text: object, note: object) -> Html:
    """What a cell says, and under it in small letters what belongs to it, in one line: an interval, a mark."""
    return Html(f'{html(text)}<br><span class="interval">{html(note)}</span>')


def missing(reason: object, beside: object = "") -> Html:
    """Why a cell has no value, in small letters; under `beside` where the cell says something else too."""
    start = f"{html(beside)}<br>" if beside else ""
    return Html(f'{start}<span class="missing">{html(reason)}</span>')


def words(text: object) -> Html:
    """A cell of running text, which takes the width to be read on a phone too."""
    return Html(f'<span class="words">{html(text)}</span>')


def table(caption: str, headings: Sequence[str], rows: Iterable[Sequence[object]], texts: int = 1) -> Html:
    """A table that scrolls sideways where it is too wide; the first `texts` columns are words, the others numbers."""
    cells = "".join(f'<th scope="col"{_kind(i, texts)}>{html(name)}</th>' for i, name in enumerate(headings))
    lines = [
        "<tr>"
        + "".join(
            f'<th scope="row">{html(cell)}</th>' if i == 0 else f"<td{_kind(i, texts)}>{html(cell)}</td>"
            for i, cell in enumerate(row)
        )
        + "</tr>\n"
        for row in rows
    ]
    return Html(
        f'<p class="caption">{escape(caption)}</p>\n'  # beside the table: it shall not scroll away
        f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(caption)}">\n<table>\n'
        f"<thead><tr>{cells}</tr></thead>\n<tbody>\n{''.join(lines)}</tbody>\n"
        "</table>\n</div>\n"
    )


def figure(svg: str, caption: str) -> Html:
    """A plot, whose caption is its text for those who do not see it."""
    text = escape(caption)
    return Html(f'<figure role="img" aria-label="{text}">\n{svg}<figcaption>{text}</figcaption>\n</figure>\n')


def definitions(pairs: Iterable[tuple[str, object]], stacked: bool = False) -> Html:
    """Names and what they are: beside each other, or `stacked` where the names are long."""
    start = '<dl class="stacked">\n' if stacked else "<dl>\n"
    return Html(start + "".join(f"<dt>{html(a)}</dt><dd>{html(b)}</dd>\n" for a, b in pairs) + "</dl>\n")


def _kind(column: int, texts: int) -> str:
    return "" if column < texts else ' class="n"'
