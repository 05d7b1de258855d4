"""Help comes at once: nothing heavy is imported until it is needed."""

import subprocess
import sys

HEAVY = {"torch", "transformers", "pandas", "matplotlib", "numpy", "rich", "huggingface_hub"}
SCRIPT = """
import sys
from moetool.cli import main
sys.argv[1:] = {arguments}
try:
    main()
finally:
    print("imported", *sorted(set(sys.modules) & {heavy}), file=sys.stderr)
"""


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    script = SCRIPT.format(arguments=list(arguments), heavy=HEAVY)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)


def test_help_imports_nothing_heavy():
    result = run("--help")
    assert result.returncode == 0
    assert result.stderr == "imported\n"
    assert "memory" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80


def test_help_of_a_command_imports_nothing_heavy():
    result = run("memory", "--help")
    assert result.returncode == 0
    assert result.stderr == "imported\n"
    assert "--fail-if" in result.stdout
