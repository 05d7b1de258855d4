"""``--export`` of specialize: what is written, and what is refused before the run."""

import json

import pytest

from moetool.commands.specialize import make_report, study
from moetool.commands.specialize_targets import check_domains, parse_targets, write_targets
from moetool.errors import MoetoolError
from tests.statistics.domains import planted_trace

LIFTS = {(0, 1, 0): 2.5, (1, 2, 1): 2.5}


@pytest.mark.parametrize(
    "argument", ["atlas.json", "atlas:law=x.json", "esft=x.json", "lora=x.json", "pdf=x", "atlas="]
)
def test_malformed_targets_are_refused(argument, tmp_path):
    with pytest.raises(MoetoolError, match="expected atlas=FILE"):
        parse_targets([argument])


def test_unknown_domains_are_refused(tmp_path):
    targets = parse_targets([f"esft:law={tmp_path / 'x.json'}"])
    with pytest.raises(MoetoolError, match="there is no such domain"):
        check_domains(targets, ["code", "news"])
    check_domains(targets, ["law"])


def test_files_hold_what_the_report_says(tmp_path):
    trace = planted_trace(0, lifts=LIFTS)
    options = {"permutations": 400, "bootstraps": 200}
    result = study(trace, options)
    report = make_report(trace, result, options)
    targets = parse_targets([f"atlas={tmp_path / 'atlas.json'}", f"esft:domain0={tmp_path / 'esft.json'}"])
    write_targets(targets, trace, result, report, "token", 0.2)
    atlas = json.loads((tmp_path / "atlas.json").read_text())
    expert = atlas["layers"][0]["experts"][1]
    assert [row["domain"] for row in expert["domains"]] == ["domain0"]
    assert len(atlas["layers"]) == 3
    config = json.loads((tmp_path / "esft.json").read_text())
    assert config["experts"]["1"][0] == 1  # the planted expert is used most
    assert (config["shared_experts"], config["non_expert_modules"]) == (False, False)
