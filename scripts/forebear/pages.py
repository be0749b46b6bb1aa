"""Self-contained HTML pages of Markdown and tables, for Snakemake's report."""

import html
from itertools import pairwise

import pandas as pd
from markdown_it import MarkdownIt

PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; padding: 0 1em; }}
table {{ border-collapse: collapse; }} td, th {{ border-bottom: 1px solid #ccc; padding: .2em .6em; text-align: left; }}
td {{ font-variant-numeric: tabular-nums; }}
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


def table_page(table: pd.DataFrame, title: str) -> str:
    """A page of one table, its numbers to four digits."""
    rendered = table.to_html(index=False, border=0, float_format="{:.4g}".format, na_rep="–")
    return PAGE.format(title=html.escape(title), body=f"<h1>{html.escape(title)}</h1>\n{rendered}\n")
