"""What a page says of its run: the Report enters, the markup of a section that can be opened leaves."""

from __future__ import annotations

from dataclasses import replace

from moetool.report.formats.html_parts import findings_section, options_section, summary_section, table_section
from moetool.report.report import Report, Table


def about_section(report: Report) -> str:
    """Findings, summary, the prompts where there are two, options and versions, in the markup of the html format."""
    sections = [findings_section(report), summary_section(report)]
    sections += [table_section(_short(table)) for table in report.tables if table.key == "prompts" and table.is_shown]
    sections += [options_section(report)]
    body = "\n".join(section.html() for section in sections if section is not None)
    return f'<details class="run">\n<summary>About this run</summary>\n{body}\n</details>'


def _short(table: Table) -> Table:
    """Without the columns that the html format shows when it is asked to."""
    return replace(table, columns=tuple(column for column in table.columns if not column.detail))
