"""The benchmarks run at all; what they measure is no matter of the tests."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="they read /proc")

TOY = ["--hidden", "64", "--layers", "2"]
RUNS = {
    "capture_against_peers": [
        *TOY, "--gigabytes", "0.001", "--batches", "1", "--batch-tokens", "512", "--runs", "1", "--forwards", "1",
        "--peers", "stream,read,plain",
    ],
    "monitor_cost": [*TOY, "--intermediate", "16", "--experts", "8", "--length", "8", "--every", "1", "--turns", "1"],
    "report_growth": ["--tokens", "2000", "--layers", "2", "--experts", "8", "--per-token", "2"],
    "experts_implementations": ["--device", "cpu", "--shapes", "4.2.16.8", "--tokens", "8", "--turns", "1"],
}  # fmt: skip
LINES = {
    "capture_against_peers": "peak / (2 layers + hidden states + 300 MB)",
    "monitor_cost": "the monitor adds",
    "report_growth": "ratio",
    "experts_implementations": "bfloat16",
}


@pytest.mark.parametrize("name", RUNS)
def test_a_benchmark_runs_at_toy_size(name):
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", *RUNS[name]]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert LINES[name] in result.stdout
