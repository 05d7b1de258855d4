"""Golden files for every test: ``pytest --update-golden`` writes them, a person reads the difference."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import settings

# Tests run in two processes (pyproject.toml); threads that wait for each other would make them ten times slower.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The same examples on every machine, and none that fails because the machine is busy.
settings.register_profile("moetool", deadline=None, database=None, derandomize=True)
settings.load_profile("moetool")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write golden files instead of comparing with them")


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with ``golden/NAME`` next to the test."""

    def compare(name: str, text: str) -> None:
        path = Path(request.path).parent / "golden" / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(exist_ok=True)
            path.write_text(text, encoding="utf-8")
        assert path.is_file(), f"{path} is missing: pytest --update-golden writes it"
        assert text == path.read_text(encoding="utf-8")

    return compare
