"""``moetool models``: what it lists, as text and as JSON, and that it needs neither torch nor a network."""

import json
import subprocess
import sys

import pytest

from moetool.commands.models import SUMMARY_COLUMNS, report_models
from moetool.model.presets import PRESETS

SCRIPT = """
import socket, sys
socket.socket = None
from moetool.cli import main
sys.argv[1:] = ["models", *sys.argv[1:]]
try:
    main()
finally:
    heavy = {"torch", "transformers", "pandas", "matplotlib", "numpy", "huggingface_hub"}
    print("imported", *sorted(heavy & set(sys.modules)), file=sys.stderr)
"""


@pytest.fixture(scope="module")
def report():
    return report_models()


def run(*arguments):
    return subprocess.run([sys.executable, "-c", SCRIPT, *arguments], capture_output=True, text=True, check=False)


def test_presets(report):
    rows = {row["name"]: row for row in report.table("presets").rows}
    assert list(rows) == list(PRESETS)
    assert rows["mixtral-8x7b"] == {
        "name": "mixtral-8x7b",
        "family": "mixtral",
        "total_parameters": 46_702_792_704,
        "active_parameters": 12_879_925_248,
        "ratio": 46_702_792_704 / 12_879_925_248,
        "experts": 8,
        "experts_per_token": 2,
        "shared_experts": 0,
        "moe_layers": 32,
        "published_total": "46.7B",
        "published_active": "12.9B",
        "active_convention": "all",
        "source": PRESETS["mixtral-8x7b"].source,
    }
    assert rows["deepseek-v3"]["shared_experts"] == 1
    assert rows["deepseek-v3"]["moe_layers"] == 58
    assert rows["kimi-k2"]["family"] == "deepseek_v3"
    assert rows["kimi-k2"]["active_convention"] == "no-embedding"
    assert rows["granite-3.1-3b-a800m"]["active_convention"] is None
    assert rows["deepseek-v3.2"]["published_total"] is None


def test_families(report):
    rows = {row["family"]: row for row in report.table("families").rows}
    assert {row["engines"] for row in rows.values()} == {"stream, resident", "resident", "none"}
    assert rows["doge"]["engines"] == "none"
    assert "mixes the tokens of a batch" in rows["doge"]["checked"]
    assert rows["deepseek_v4"] == {
        "family": "deepseek_v4",
        "engines": "stream, resident",
        "scoring": "sqrtsoftplus",
        "checked": "exact in both engines",
    }
    assert list(rows)[:2] == ["doge", "nllb-moe"], "the most restricted come first"


def test_summary(report):
    assert report.summary["presets"] == len(PRESETS)
    assert report.summary["families"] == len({row["family"] for row in report.table("presets").rows})
    families = report.table("families").rows
    assert report.summary["exact_families"] + report.summary["restricted_families"] == len(families)
    assert report.summary["refused_families"] == sum(row["engines"] == "none" for row in families)
    assert [column.key for column in SUMMARY_COLUMNS] == list(report.summary)
    report.verify()


def test_text_without_torch_or_a_network():
    result = run()
    assert result.returncode == 0
    assert result.stderr == "imported\n"
    assert "mixtral-8x7b" in result.stdout
    assert "46.70 B" in result.stdout


def test_json_and_checks(tmp_path):
    saved = tmp_path / "models.md"
    result = run("--json", "--fail-if", "presets > 10", "--save", str(saved))
    assert result.returncode == 1
    document = json.loads(result.stdout)
    assert document["schema"] == "moetool.models/1.0"
    assert document["summary"]["presets"] == len(PRESETS)
    assert document["tables"]["presets"][0]["source"]
    assert "check failed" in result.stderr
    assert "mixtral-8x7b" in saved.read_text()
