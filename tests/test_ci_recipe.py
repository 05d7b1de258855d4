"""The recipe of examples/ci: its own steps run, with ``moetool`` from this tree, as GitHub's runner would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from moetool.capture.store import write_trace
from tests.statistics.traces import random_trace

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / "examples" / "ci" / "routing.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step["run"] for step in WORKFLOW["jobs"]["routing"]["steps"] if "name" in step}


@pytest.fixture
def steps(tmp_path):
    """Run all steps in a folder: the exit code of the first, its output, and the summary."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "moetool"
    (tmp_path / "work").mkdir()

    def run(rest='"$@" --max-tokens 400', **changes) -> tuple[int, str, str]:
        program.write_text(f'#!/bin/bash\nexec "{sys.executable}" -m moetool {rest}\n')
        program.chmod(0o755)
        summary = tmp_path / "summary.md"
        summary.write_text("")
        variables = {**WORKFLOW["env"], **changes, "GITHUB_STEP_SUMMARY": str(summary)}
        path = {"PYTHONPATH": str(ROOT), "PATH": f"{program.parent}:{os.environ['PATH']}"}
        done = [
            subprocess.run(
                ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
                cwd=tmp_path / "work", env={**os.environ, **path, **variables}, capture_output=True, text=True,
                check=False,
            )
            for script in STEPS.values()
        ]  # fmt: skip
        assert done[1].returncode == 0, done[1].stderr
        return done[0].returncode, done[0].stdout, summary.read_text()

    return run


def test_without_a_baseline(steps, tmp_path):
    code, _, summary = steps()
    assert code == 0
    assert summary.startswith("## moetool route-stats: demo\n")
    assert {path.name for path in (tmp_path / "work").iterdir()} == {
        f"routing.{kind}" for kind in ("json", "md", "html", "xml")
    }


def test_with_a_baseline_and_then_with_a_worse_run(steps, tmp_path):
    """Of a trace, which is quick, so that --device has nothing to say."""
    trace = random_trace(0, 8, 2, (400,) * 6)
    write_trace(trace, tmp_path / "trace")
    without_device = '"${@:1:2}" "${@:5}"'
    on_trace = {"rest": without_device, "MODEL": str(tmp_path / "trace"), "BASELINE": "base.json"}
    baseline = tmp_path / "work" / "base.json"
    assert steps(**on_trace)[0] == 0
    report = json.loads((tmp_path / "work" / "routing.json").read_text())
    report["summary"]["max_violation"] /= 1.06
    baseline.write_text(json.dumps(report))
    code, out, summary = steps(**on_trace)
    assert code == 1
    assert "::error title=moetool route-stats check failed::max_violation is " in out
    assert "**check failed:** max" in summary.split("\n|")[0], "failed checks come before any table"
    report["summary"]["max_violation"] *= 1.02
    baseline.write_text(json.dumps(report))
    assert steps(**on_trace)[0] == 0


def test_no_report_leaves_no_summary_behind_and_breaks_no_later_step(steps):
    assert steps(MODEL="nowhere") == (2, "", "")


def test_only_the_install_is_not_run_here():
    left = [step["run"] for step in WORKFLOW["jobs"]["routing"]["steps"] if "run" in step and "name" not in step]
    assert left == ['python -m pip install "$PACKAGE"']
