"""Self-contained HTML pages of Markdown and tables, for Snakemake's report."""

import html
from collections.abc import Sequence
from itertools import pairwise

import pandas as pd
from markdown_it import MarkdownIt

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }}
table {{ border-collapse: collapse; }} td, th {{ border-bottom: 1px solid #ccc; padding: .2em .6em; text-align: left; }}
td {{ font-variant-numeric: tabular-nums; }}
.numbers {{ font-size: 13px; }} .numbers td, .numbers th {{ text-align: right; white-space: nowrap; }}
.numbers td:first-child, .numbers th:first-child {{ text-align: left; }} .numbers th {{ white-space: normal; }}
</style></head><body>
{body}</body></html>
"""


def markdown_page(text: str) -> str:
    """A page of Markdown with tables; HTML inside the text is shown, not interpreted. Links to headings work."""
    parser = MarkdownIt("commonmark", {"html": False}).enable("table")
    tokens = parser.parse(text)
    for heading, content in pairwise(tokens):
        if heading.type == "heading_open":
            heading.attrSet("id", content.content.lower().replace(" ", "-"))
    title = next((token.content for token in tokens if token.type == "inline"), "")
    return PAGE.format(title=html.escape(title), body=parser.renderer.render(tokens, parser.options, {}))


# Columns of evaluation.csv as the page shows them: heading and format; others stay as they are.
COLUMNS = {
    "lds": ("LDS (95% interval)", "{:.2f}"),
    "mrr": ("MRR", "{:.2f}"),
    "recall_at_10": ("Recall@10", "{:.2f}"),
    "map": ("MAP", "{:.2f}"),
    "overhead_seconds": ("overhead, s", "{:.3g}"),
    "scoring_seconds": ("scoring, s", "{:.3g}"),
    "queries": ("queries", "{:,.0f}"),
    "pairs": ("pairs", "{:,.0f}"),
    "seconds_per_pair": ("scoring a pair, s", "{:.2g}"),
    "peak_mib": ("peak, MiB", "{:,.0f}"),
    "tracked_share": ("tracked", "{:.0%}"),
}


def evaluation_page(table: pd.DataFrame, study: str, warnings: Sequence[str] = ()) -> str:
    """evaluation.csv as a page: an estimator a row, its LDS and the interval in one cell, after some warnings."""
    shown = table.drop(columns=["lds_low", "lds_high"], errors="ignore").astype(object)
    for name, (_, form) in COLUMNS.items():
        if name in shown:
            shown[name] = ["–" if pd.isna(value) else form.format(value) for value in table[name]]
    if "lds_low" in table:
        for k, (low, high) in enumerate(zip(table["lds_low"], table["lds_high"], strict=True)):
            if not pd.isna(low):
                shown.loc[shown.index[k], "lds"] += f" ({low:.2f} to {high:.2f})"
    headings = {name: heading for name, (heading, _) in COLUMNS.items()}
    rendered = shown.rename(columns=headings).to_html(index=False, border=0, na_rep="–", classes="numbers")
    title = html.escape(f"Evaluation of {study}")
    notes = "".join(f"<p><b>⚠ {html.escape(sentence)}</b></p>\n" for sentence in warnings)
    return PAGE.format(title=title, body=f"<h1>{title}</h1>\n{notes}{rendered}\n")
