"""Page: a report as one HTML file.

Invariant: it needs no network and holds no script. Whatever stands in a trajectory or a file's name is text there.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from rollout_service.report import plots, tables
from rollout_service.report.comparison import Comparison
from rollout_service.report.run import Run
from rollout_service.report.tables import Table
from rollout_service.report.visible_text import visible
from rollout_service.version import __version__

_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.15rem; margin-top: 2rem; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.wide { overflow-x: auto; }
th, td { text-align: left; padding: .25rem .8rem .25rem 0; border-bottom: 1px solid #8884; }
td { white-space: nowrap; }
figure { margin: 1rem 0; background: white; border-radius: 4px; display: inline-block; }
svg { max-width: 100%; height: auto; }
"""

_ALL = 1_000_000
"""More tasks than there are: the page has all of them."""


def page(run: Run, comparison: Comparison | None = None) -> str:
    """The report of a run, and of its comparison with another, as HTML."""
    parts = [f"<h1>{_text(run.name)}</h1>", f"<p>{_facts(run)}</p>"]
    *shown, tasks = [*tables.of_summary(run), *tables.of_evaluation(run.evaluation, _ALL), *tables.of_run(run, _ALL)]
    if comparison is not None:
        shown += tables.of_comparison(comparison, _ALL)
    parts += map(_table, shown)
    parts += _plots(run)
    parts.append(_table(tasks))
    title = f"<title>Report: {_text(run.name)}</title>"
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width">{title}<style>{_STYLE}</style>'
    body = "\n".join(parts)
    return f'<!doctype html>\n<html lang="en"><head>{head}</head>\n<body>\n{body}\n</body></html>\n'


def _text(text: str) -> str:
    return escape(visible(text))


def _facts(run: Run) -> str:
    known = {name: value for name, value in run.conditions.items() if isinstance(value, str)}
    known = {name: known[name] for name in ("model", "agent", "user", "evaluation") if name in known}
    text = ", ".join(f"{name} {value}" for name, value in known.items())
    tau2 = " ".join(str(run.conditions.get(name, "")) for name in ("tau2_distribution", "tau2_version")).strip()
    parts = [f"{run.total.episodes:,} episodes of {len(run.tasks):,} tasks", text, tau2, f"report of {__version__}"]
    return _text("; ".join(part for part in parts if part))


def _table(table: Table) -> str:
    head = "".join(f'<th scope="col">{_text(column)}</th>' for column in table.columns)
    rows = "\n".join(f"<tr>{_cells(row)}</tr>" for row in table.rows)
    notes = "".join(f"<p>{_text(note)}</p>" for note in table.notes)
    drawn = f'<div class="wide"><table><thead><tr>{head}</tr></thead>\n<tbody>{rows}</tbody></table></div>'
    return f"<h2>{_text(table.title)}</h2>\n{drawn if table.rows else ''}{notes}"


def _cells(row: Iterable[str]) -> str:
    first, *others = row
    return f'<th scope="row">{_text(first)}</th>' + "".join(f"<td>{_text(cell)}</td>" for cell in others)


def _plots(run: Run) -> list[str]:
    if not plots.can_plot():
        return [f"<h2>Plots</h2><p>There are none, because matplotlib is not installed: {_text(plots.REMEDY)}</p>"]
    drawn = plots.as_svg(run)
    return [f'<figure role="img" aria-label="{_text(title)}">{svg}</figure>' for title, svg in drawn.items()]
