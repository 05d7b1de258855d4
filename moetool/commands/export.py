"""Tokens per expert for other tools: a report of ``route-stats`` enters, CSV, parquet or JSON files leave.

``.csv`` and ``.parquet`` have the columns ``layer,expert,count``. ``.json`` holds ``{"logical_count": [[...]]}``, the
tokens of every expert by decoder layer (zeros for dense ones), which SGLang reads with ``--init-expert-location``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.commands.run import check_writable, write_file
from moetool.errors import MoetoolError
from moetool.report.report import Report

if TYPE_CHECKING:
    import pandas as pd


def expert_counts(report: Report) -> pd.DataFrame:
    """A frame of ``layer``, ``expert`` and ``count`` (counted tokens that chose the expert)."""
    frame = report.table("experts").to_frame()[["layer", "expert", "assignments"]]
    return frame.rename(columns={"assignments": "count"})


def check_exports(targets: Sequence[Path]) -> None:
    """Raise MoetoolError for a target of unknown kind or one that cannot be written; leaves no file."""
    for target in targets:
        if target.suffix not in _WRITERS:
            raise MoetoolError(
                f"--export {target}: no export is known for {target.suffix or 'a name without suffix'}",
                f"name it with one of {' '.join(_WRITERS)}",
            )
        if (target.parent / "trace.json").exists():
            raise MoetoolError(f"--export {target} would write into a trace", "name a file outside of the folder")
        check_writable("--export", target)


def write_exports(report: Report, targets: Sequence[Path]) -> None:
    """Write every file as a whole."""
    for target in targets:
        write_file("--export", target, _WRITERS[target.suffix](report))


def _csv(report: Report) -> bytes:
    text: str = expert_counts(report).to_csv(index=False, lineterminator="\n")
    return text.encode()


def _parquet(report: Report) -> bytes:
    output = BytesIO()
    expert_counts(report).to_parquet(output, index=False)
    return output.getvalue()


def _logical_count(report: Report) -> bytes:
    frame = expert_counts(report)
    experts = int(frame["expert"].max()) + 1
    layers = [[0] * experts for _ in range(int(frame["layer"].max()) + 1)]
    for layer, expert, count in zip(frame["layer"], frame["expert"], frame["count"], strict=True):
        layers[layer][expert] = int(count)
    return (json.dumps({"logical_count": layers}) + "\n").encode()


_WRITERS: dict[str, Callable[[Report], bytes]] = {".csv": _csv, ".parquet": _parquet, ".json": _logical_count}
