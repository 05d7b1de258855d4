"""``--export KIND[:DOMAIN]=FILE`` of ``specialize``: targets enter, files of other tools leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moetool.commands.run import check_writable, write_file
from moetool.errors import MoetoolError

if TYPE_CHECKING:
    from moetool.capture.trace import RoutingTrace
    from moetool.report.report import Report
    from moetool.statistics.specialization import Specialization

KINDS = ("atlas", "esft", "lora")
OF_DOMAIN = ("esft", "lora")
"""Kinds that select the experts of one domain."""
SCORES = ("token", "gate")


@dataclass(frozen=True, slots=True)
class Target:
    """One file to write."""

    kind: str
    domain: str
    """Empty for kinds that take all domains."""
    path: Path


def parse_targets(arguments: Sequence[str]) -> list[Target]:
    """Targets of ``KIND[:DOMAIN]=FILE``; MoetoolError for one that is malformed or cannot be written."""
    targets = []
    for argument in arguments:
        head, separator, name = argument.partition("=")
        kind, _, domain = head.partition(":")
        if not separator or not name or kind not in KINDS or bool(domain) != (kind in OF_DOMAIN):
            raise MoetoolError(
                f"--export {argument}: expected atlas=FILE, esft:DOMAIN=FILE or lora:DOMAIN=FILE",
                "for example --export esft:law=law.json",
            )
        check_writable("--export", Path(name))
        targets.append(Target(kind, domain, Path(name)))
    return targets


def check_domains(targets: Sequence[Target], domains: Sequence[str]) -> None:
    """Refuse the experts of a domain that the corpus does not have."""
    for target in targets:
        if target.domain and target.domain not in domains:
            known = ", ".join(domains)
            raise MoetoolError(
                f"--export {target.kind}:{target.domain}: there is no such domain", f"name one of {known}"
            )


def write_targets(
    targets: Sequence[Target],
    trace: RoutingTrace,
    result: Specialization,
    report: Report,
    score: str,
    share: float,
) -> None:
    """Write every file as a whole; the experts of a domain are those whose scores reach ``share`` together."""
    from moetool.commands.specialize_exports import atlas, esft_config, lora_targets
    from moetool.statistics.selection import select_experts

    for target in targets:
        if target.kind == "atlas":
            tokens: dict[tuple[int, int], list[str]] = {}
            for row in report.table("tokens").rows:
                tokens.setdefault((int(str(row["layer"])), int(str(row["expert"]))), []).append(str(row["token"]))
            content = atlas(trace, result, report.table("specialists").rows, tokens if result.text else None)
        else:
            selected = select_experts(trace, target.domain, score, share)
            family = trace.model.get("family")
            content = esft_config(selected) if target.kind == "esft" else lora_targets(family, selected)
        write_file("--export", target.path, content)
