"""The HTML format: a Report enters, one page leaves that needs no network, no server and, to be read, no script.

Style, script and figures are in the file. A policy in its head forbids everything else: whatever a name or a message
holds, the browser loads nothing and runs only the script of which the head has the hash.
"""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from pathlib import Path

from moetool.report.formats import Page
from moetool.report.formats.html_parts import (
    Section,
    checks_section,
    figures_section,
    findings_section,
    options_section,
    show,
    summary_section,
    table_section,
)
from moetool.report.report import Report
from moetool.report.values import write_title

_LONGEST_TITLE = 120


def render(report: Report, page: Page) -> str:
    """Checks, findings, summary, figures, tables, options; the same report gives the same bytes."""
    sections = [checks_section(report), findings_section(report), summary_section(report), figures_section(report)]
    sections += [table_section(table) for table in report.tables if table.is_shown]
    sections += [options_section(report)]
    return _page(*write_title(report), [section for section in sections if section is not None])


def _page(title: str, details: str, sections: list[Section]) -> str:
    script = _asset("html.js")
    links = "\n".join(f'<li><a href="#{part.key}">{show(part.title, 40)}</a></li>' for part in sections)
    body = "\n".join(part.html() for part in sections)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{escape(_policy(script))}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title[:_LONGEST_TITLE])}</title>
<link rel="icon" href="data:,">
<style>{_asset("html.css")}</style>
<noscript><style>tbody[hidden] {{ display: table-row-group; }}</style></noscript>
</head>
<body>
<a class="skip" href="#report">Skip to the report</a>
<header>
<div>
<h1>{show(title, _LONGEST_TITLE)}</h1>
<p>{show(details, _LONGEST_TITLE)}</p>
</div>
<div class="settings">
<fieldset>
<legend>Colours</legend>
<label><input type="radio" name="colours" checked> system</label>
<label><input type="radio" name="colours" id="light"> light</label>
<label><input type="radio" name="colours" id="dark"> dark</label>
</fieldset>
</div>
</header>
<nav aria-label="Contents">
<ul>
{links}
</ul>
</nav>
<main id="report">
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def _asset(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


def _policy(script: str) -> str:
    """Nothing from anywhere, but for this style, this script, and the pixels that are inside of figures."""
    fingerprint = b64encode(sha256(script.encode("utf-8")).digest()).decode("ascii")
    return (
        f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{fingerprint}'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )
