"""The recipe of examples/ci: its own steps run, with ``moetool`` from this tree, as GitHub's runner would run them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = yaml.safe_load((ROOT / "examples" / "ci" / "routing.yml").read_text(encoding="utf-8"))
STEPS = {step["name"]: step["run"] for step in WORKFLOW["jobs"]["routing"]["steps"] if "name" in step}


@pytest.fixture
def steps(tmp_path):
    """Run all steps in a folder: the exit code of the first, its output, and the summary."""
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "moetool"
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m moetool "$@" --max-tokens 400\n')
    program.chmod(0o755)
    (tmp_path / "work").mkdir()

    def run(**changes) -> tuple[int, str, str]:
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


def test_without_a_baseline_then_with_one_then_with_a_worse_run(steps, tmp_path):
    work = tmp_path / "work"
    code, _, summary = steps()
    assert code == 0
    assert summary.startswith("## moetool route-stats: demo\n")
    assert {path.name for path in work.iterdir()} == {f"routing.{kind}" for kind in ("json", "md", "html", "xml")}
    report = json.loads((work / "routing.json").read_text())
    report["summary"]["max_violation"] /= 1.06
    (work / "baseline").mkdir()
    baseline = work / "baseline" / "routing.json"
    baseline.write_text(json.dumps(report))
    code, out, summary = steps()
    assert code == 1
    assert "::error title=moetool route-stats check failed::max_violation is " in out
    assert "**check failed:** max" in summary.split("\n|")[0], "failed checks come before any table"
    report["summary"]["max_violation"] *= 1.02
    baseline.write_text(json.dumps(report))
    assert steps()[0] == 0


def test_no_report_leaves_no_summary_behind_and_breaks_no_later_step(steps):
    assert steps(MODEL="nowhere") == (2, "", "")


def test_only_the_install_is_not_run_here():
    left = [step["run"] for step in WORKFLOW["jobs"]["routing"]["steps"] if "run" in step and "name" not in step]
    assert left == ['python -m pip install "$PACKAGE"']
