"""The schemas in the package against the reports of today: ``pytest --update-golden`` writes them."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator, ValidationError

from moetool.cli import COMMANDS
from moetool.errors import MoetoolError
from moetool.report import schemas
from moetool.report.report import Check
from tests.report.command_reports import REPORTS, as_json
from tests.report.sample_report import make_report


def test_every_command_has_samples():
    assert {name for name, _ in COMMANDS} == set(REPORTS)


@pytest.mark.parametrize("command", REPORTS)
def test_the_schema_in_the_package_is_that_of_the_reports(command, request):
    schema = schemas.make_schema(REPORTS[command]())
    if request.config.getoption("--update-golden"):
        path = Path(schemas.__file__).parent / f"{command}.json"
        path.write_text(json.dumps(schema, indent=1) + "\n", encoding="utf-8")
    assert schemas.read_schema(command) == schema


@pytest.mark.parametrize("command", REPORTS)
def test_reports_are_as_their_schema_says(command):
    schema = schemas.read_schema(command)
    Draft202012Validator.check_schema(schema)
    check = Check("tokens > 1", "tokens", None, True, "undefined")
    for report in REPORTS[command]():
        Draft202012Validator(schema).validate(as_json(report.with_checks([check])))


@pytest.mark.parametrize(
    ("place", "value"),
    [
        (("schema",), "moetool.memory/1.0"),
        (("schema",), "moetool.route-stats/2.0"),
        (("summary", "tokens"), "many"),
        (("summary", "tokens"), 0.5),
        (("summary", "sparsity"), True),
        (("tables", "layers", 0, "layer"), None),
        (("tables", "layers", 0, "gini"), "x"),
        (("findings", 0, "level"), "fatal"),
        (("options", "seed"), {}),
    ],
)
def test_a_schema_tells_what_is_wrong(place, value):
    schema, content = schemas.make_schema([make_report()]), as_json(make_report())
    Draft202012Validator(schema).validate(content)
    part = content
    for step in place[:-1]:
        part = part[step]
    part[place[-1]] = value
    with pytest.raises(ValidationError) as caught:
        Draft202012Validator(schema).validate(content)
    assert tuple(caught.value.absolute_path) == place


def test_a_schema_allows_more_keys_and_undefined_numbers_but_misses_none():
    validator = Draft202012Validator(schemas.make_schema([make_report()]))
    content = as_json(make_report())
    content["schema"] = "moetool.route-stats/1.7"
    content["summary"] |= {"new": 1, "gini": None, "tokens": None}
    content["tables"]["layers"][0]["gini"] = None
    validator.validate(content)
    del content["summary"]["tokens"]
    with pytest.raises(ValidationError, match="'tokens' is a required property"):
        validator.validate(content)


def test_types_are_those_of_values_or_of_units():
    report = make_report()
    types = schemas.make_schema([report])["properties"]["summary"]["properties"]
    assert types["tokens"]["type"] == ["integer", "null"]
    assert types["sparsity"]["type"] == ["number", "null"]
    assert types["z_loss"]["type"] == ["number", "null"]
    assert types["dead_experts"]["description"] == "Experts that never ran; 0 is healthy."
    assert types["router_entropy"]["x-unit"] == "nats"
    others = replace(report, summary={**report.summary, "tokens": 0.5, "z_loss": True})
    types = schemas.make_schema([report, others])["properties"]["summary"]["properties"]
    assert types["tokens"]["type"] == ["number", "null"]
    assert types["z_loss"]["type"] == ["boolean", "null"]


def test_a_command_without_a_schema():
    with pytest.raises(MoetoolError, match="fly is not described"):
        schemas.read_schema("fly")
