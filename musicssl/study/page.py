"""The frame of a report's or leaderboard's page: head, style and navigation; it loads nothing."""

from collections.abc import Sequence
from html import escape

_STYLE = """
:root { --ink: #1b1f24; --faint: #5c6670; --line: #d9dee3; --accent: #0b5394; }
* { box-sizing: border-box; }
html { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; color: var(--ink);
  background: #fff; -webkit-text-size-adjust: 100%; print-color-adjust: exact;
  -webkit-print-color-adjust: exact; }
body { margin: 0 auto; max-width: 1220px; padding: 0 20px 60px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 28px 0 8px; }
h2 { font-size: 1.35rem; margin: 44px 0 8px; padding-top: 10px; border-top: 2px solid var(--ink); }
h3 { font-size: 1.05rem; margin: 24px 0 6px; }
p { max-width: 78ch; margin: 8px 0; }
a { color: var(--accent); }
code { font: 0.85em/1.4 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  background: #f3f5f7; padding: 1px 4px; border-radius: 3px; }
nav { display: flex; flex-wrap: wrap; gap: 4px 18px; margin: 14px 0; }
.note { background: #fff6dd; border-left: 4px solid #d9a400; padding: 10px 14px; }
.small { font-size: 0.8rem; color: var(--faint); font-weight: 400; }
.wide { overflow-x: auto; max-width: 100%; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 8px; text-align: center; vertical-align: middle; }
thead th { font-size: 0.8rem; vertical-align: bottom; border-bottom: 1px solid var(--ink); }
tbody th, tfoot th { text-align: left; font-weight: 500; white-space: nowrap; position: sticky;
  left: 0; background: #fff; z-index: 1; }
.plain td, .plain thead th { text-align: left; }
.plain td { white-space: nowrap; }
.plain td:nth-child(2) { min-width: 260px; white-space: normal; }
.told td { white-space: normal; min-width: 150px; }
.plain tr, .scores tr { border-bottom: 1px solid var(--line); }
.scores td { min-width: 84px; line-height: 1.25; white-space: nowrap; }
.scores .foot td, .scores .foot th, .scores .published td { color: var(--faint);
  font-size: 0.85rem; }
.scores tfoot tr:first-child { border-top: 1px solid var(--ink); }
th button { font: inherit; color: inherit; background: none; border: 0; padding: 0;
  cursor: pointer; }
th button:hover, th button:focus-visible { color: var(--accent); text-decoration: underline; }
th[aria-sort] button::after { content: " \\2193"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
.scores tr.random th, .scores tr.features th { font-style: italic; }
.none { color: #9aa3ab; font-size: 0.8rem; }
.up { color: #00704f; } .down { color: #b3431f; }
.up, .down { font-size: 0.7em; margin-left: 3px; vertical-align: 2px; }
.heat td { padding: 1px 5px; font-size: 0.75rem; min-width: 27px; }
.heat th { font-size: 0.75rem; padding: 1px 6px 1px 0; }
.heat thead th { border: 0; text-align: center; }
.heat .chosen { outline: 2px solid #d55e00; outline-offset: -2px; }
figure { margin: 0; min-width: 0; break-inside: avoid; }
figcaption { font-size: 0.82rem; line-height: 1.3; padding: 2px 0 3px; }
figure { display: flex; flex-direction: column; justify-content: flex-end; }
.charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(270px, 1fr));
  gap: 14px 20px; }
.small-charts { display: grid; grid-template-columns: repeat(auto-fill, minmax(155px, 1fr));
  gap: 10px 12px; }
.heats { display: grid; grid-template-columns: repeat(auto-fill, minmax(350px, 1fr));
  gap: 22px 26px; }
.chart { width: 100%; height: auto; display: block; }
.chart text { font: 9.5px system-ui, sans-serif; fill: var(--faint); stroke: none; }
.chart .grid { stroke: #e6eaee; stroke-width: 1; fill: none; }
.chart .chance { stroke: #777; stroke-width: 1; stroke-dasharray: 2 3; fill: none; }
.legend { display: flex; flex-wrap: wrap; gap: 2px 16px; font-size: 0.8rem; max-width: none; }
.legend svg { margin-right: 5px; }
details { margin: 8px 0; }
summary { cursor: pointer; font-weight: 600; margin: 10px 0 6px; }
.made > summary { font-weight: 400; font-size: 0.8rem; color: var(--faint); }
.made ol, ol { padding-left: 30px; }
li { margin: 5px 0; }
@media (max-width: 600px) {
  html { font-size: 14px; }
  body { padding: 0 12px 40px; }
  tbody th, tfoot th { white-space: normal; min-width: 96px; max-width: 120px; font-size: 0.8rem; }
  .heat tbody th { white-space: nowrap; max-width: none; font-size: 0.75rem; }
  .scores td { min-width: 74px; padding: 3px 4px; }
  .small-charts { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .charts, .heats { grid-template-columns: minmax(0, 1fr); }
}
@media print {
  html { font-size: 10px; }
  body { max-width: none; padding: 0; }
  nav { display: none; }
  .wide { overflow: visible; }
  tbody th, tfoot th { position: static; }
  h2, h3, summary, .legend, section > p { break-after: avoid; }
  h2 { margin-top: 24px; }
  #made details::details-content, .tests::details-content { content-visibility: visible;
    height: auto; }
  tr { break-inside: avoid; }
  .scores td { min-width: 0; }
  .charts { grid-template-columns: repeat(3, 1fr); }
  .small-charts { grid-template-columns: repeat(5, 1fr); }
  .heats { grid-template-columns: repeat(2, 1fr); }
}
"""


# Sorts a table by a column when its heading is clicked: first from the greatest, then from the
# least; rows without a value stay last.
SORTING = """
for (const button of document.querySelectorAll("th button")) {
  button.onclick = () => {
    const head = button.closest("th"), table = head.closest("table");
    const text = head.dataset.order === "text", before = head.getAttribute("aria-sort");
    const order = before ? (before === "ascending" ? "descending" : "ascending")
      : (text ? "ascending" : "descending");
    const key = (row) => row.cells[head.cellIndex].dataset.value ?? "";
    const compare = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (x === "" || y === "") return (x === "") - (y === "");
      const way = text ? x.localeCompare(y) : x - y;
      return order === "ascending" ? way : -way;
    };
    for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", order);
    table.tBodies[0].append(...[...table.tBodies[0].rows].sort(compare));
  };
}
"""


def document(
    title: str, lead: str, sections: Sequence[tuple[str, str, str]], script: str = ""
) -> str:
    """Return an HTML document.

    Args:
      lead: HTML above the navigation.
      sections: (anchor, heading, HTML) of each section.
      script: a script for the page to run, such as SORTING.
    """
    links = "".join(f"<a href='#{name}'>{escape(heading)}</a>" for name, heading, _ in sections)
    body = "".join(
        f"<section id='{name}'><h2>{escape(heading)}</h2>{text}</section>"
        for name, heading, text in sections
    )
    run = f"<script>{script}</script>" if script else ""
    return (
        "<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'>"
        "<meta name='viewport' content='width=device-width, initial-scale=1'>"
        f"<title>{escape(title)}</title><style>{_STYLE}</style></head>\n"
        f"<body><h1>{escape(title)}</h1>{lead}<nav>{links}</nav>\n{body}{run}</body></html>\n"
    )
