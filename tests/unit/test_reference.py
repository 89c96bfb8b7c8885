"""Generated references are up to date, and the JSON schema accepts what the file accepts."""

import json
import tomllib

import jsonschema
import pytest

from sdcore import reference
from sdcore.config import Experiment
from sdcore.config.sections import sections
from sdcore.store.schema import TABLES
from tests.helpers.paths import EXPERIMENTS, QUICKSTART

SCHEMA = Experiment.model_json_schema()


@pytest.mark.parametrize("path", reference.files(), ids=lambda path: "/".join(path.parts[-2:]))
def test_no_generated_file_is_stale(path):
    # if this fails: python -m sdcore.reference
    assert path.read_text("utf-8") == reference.files()[path]


@pytest.mark.parametrize("path", sorted(EXPERIMENTS.glob("*.toml")), ids=lambda path: path.stem)
def test_editors_find_the_schema_and_accept_the_shipped_file(path):
    text = path.read_text("utf-8")
    named = path.with_name(text.splitlines()[0].removeprefix("#:schema "))
    schema = reference.files()[named]
    jsonschema.validate(tomllib.loads(text), json.loads(schema))


@pytest.mark.parametrize(
    ("section", "wrong"),
    [
        ("training", {"round": 3}),
        ("training", {"rounds": 0}),
        ("conditions", {"c": {"objective": "grpo", "learning_rate": 1e-3, "context": "none"}}),
    ],
)
def test_the_schema_refuses_a_wrong_setting(section, wrong):
    tree = tomllib.loads(QUICKSTART.read_text("utf-8"))
    tree[section] |= wrong
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(tree, json.loads(reference.experiment_schema()))


def test_the_reference_has_every_setting_of_every_section():
    known = sections(SCHEMA)
    listed = {(*section.path, setting.name) for section in known for setting in section.settings}
    for name, field in Experiment.model_fields.items():
        inside = getattr(field.annotation, "model_fields", {})
        assert {(name, setting) for setting in inside} <= {path[:2] for path in listed}
    assert {("conditions", "<name>", "teacher", "kind"), ("critic", "max_budget")} <= listed
    text = reference.settings_reference()
    assert '### `[conditions.<name>]` with `objective = "grpo"`' in text
    assert "| `group_size` | integer ≥ 2 | `8` |" in text
    assert "| `rounds` | integer ≥ 1, ≤ 100000 | `60` |" in text


def test_the_reference_has_every_column_of_every_table():
    text = reference.tables_reference()
    for table in TABLES.values():
        own = text.partition(f"### `{table.name}`\n")[2].partition("\n### ")[0]
        assert [line.split("`")[1] for line in own.splitlines() if line.startswith("| `")] == [
            column.name for column in table.columns
        ]
