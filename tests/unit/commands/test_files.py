"""Which commands make another run, which continue one, and which are refused."""

from datetime import datetime

import pytest
from typer.testing import CliRunner

from flows.commands import main
from flows.servers import standing
from sdcore.config import Experiment, load_experiment
from sdcore.errors import ConfigError, SdcoreError
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.paths import EXPERIMENTS, QUICKSTART


@pytest.fixture
def sdcore(tmp_path, monkeypatch):
    """The command, with runs that do nothing but enter their row; returns the run's id."""
    runs = []

    def stored(settings: Experiment, root, **_) -> None:
        row = {
            "experiment_id": settings.experiment_id, "name": settings.name,
            "fingerprint": settings.fingerprint, "config": settings.model_dump_json(),
            "code_version": "", "libraries": "{}", "created_at": datetime(2026, 1, 1 + len(runs)),
        }  # fmt: skip
        Store(root / "sdcore.duckdb").replace(experiments=TABLES["experiments"].frame([row]))
        runs.append(settings.experiment_id)

    def call(*arguments: object, workspace="runs") -> str:
        monkeypatch.setattr(main, "run_experiment", stored)
        where = ["--workspace", str(tmp_path / workspace)]
        CliRunner().invoke(main.app, [*map(str, arguments), *where], catch_exceptions=False)
        return runs[-1]

    def config(run: str) -> str:
        rows = Store(tmp_path / "runs" / "sdcore.duckdb").rows("experiments", experiment_id=run)
        return rows["config"][0]

    call.stored = config
    return call


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "quickstart.toml"
    path.write_text(QUICKSTART.read_text())
    return path


ADDED = """
[conditions.until_error]
objective = "distill"
context = "step_aligned"
tokens = "until_error"
learning_rate = 2e-4
"""


def edit(file, old, new):
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


DAMAGED = ["", "{", "[]", "null", "5", '{"run": 5, "file": {}}', '{"run": "x", "file": []}',
           '{"run": ' + "9" * 5000 + "}", "[" * 100_000, "\udcff"]  # fmt: skip


@pytest.mark.parametrize("text", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_note_of_the_last_run_is_named(sdcore, tmp_path, text):
    folder = tmp_path / "runs" / "files"
    folder.mkdir(parents=True)
    (folder / "quickstart.json").write_text(text, "utf-8", "surrogateescape")
    with pytest.raises(ConfigError, match=r"cannot be read[\s\S]*quickstart.json[\s\S]*--new"):
        sdcore("run", "quickstart")
    assert sdcore("run", "quickstart", "--new") == sdcore("run", "quickstart")


@pytest.mark.parametrize(
    "text", [*DAMAGED[:3], DAMAGED[8], '{"prefect": 1e999}', '{"prefect": null}']
)
def test_a_damaged_note_of_the_services_is_named(tmp_path, text):
    (tmp_path / "services.json").write_text(text)
    with pytest.raises(SdcoreError, match=r"cannot be read[\s\S]*services.json[\s\S]*down"):
        standing.addresses(tmp_path)


def test_settings_on_the_command_line_make_another_run_without_being_asked(sdcore):
    first = sdcore("run", "quickstart")
    quick = sdcore("run", "quickstart", "--quick")
    more = sdcore("run", "quickstart", "training.rounds=96", "conditions.grpo.group_size=4")
    assert len({first, quick, more}) == 3
    assert sdcore("run", "quickstart", "training.rounds=96") not in (first, quick, more)
    assert sdcore("run", QUICKSTART) == first  # by its path: the same run
    assert sdcore("run", "quickstart", "seeds=[0]") == quick


def test_a_quick_run_may_come_before_the_whole_one(sdcore):
    assert sdcore("run", "quickstart", "--quick") != sdcore("run", "quickstart")


def test_a_changed_file_of_the_same_name_asks(sdcore, file):
    first = sdcore("run", file, "--quick")
    edit(file, "rate = 4e-4", "rate = 5e-4")
    for changed in ([], ["--quick"], ["training.rounds=3"]):
        with pytest.raises(ConfigError, match=r"grpo.learning_rate was 0.0004, is 0.0005") as error:
            sdcore("run", file, *changed)
        assert f"has changed since its last run, {first}" in error.value.what
        assert "--new" in error.value.fix and f"sdcore resume {first}" in error.value.fix
    second = sdcore("run", file, "--new")
    assert second != first
    assert sdcore("run", file) == second  # asked once
    assert sdcore("run", file, "--quick") not in (first, second)
    with pytest.raises(ConfigError, match=r"was 0.0005, is 0.0004"):
        sdcore("run", "quickstart", "training.rounds=5")


def test_conditions_and_seeds_are_added_to_a_run_where_that_is_asked(sdcore, file):
    first = sdcore("run", file)
    edit(file, "seeds = [0, 1, 2]", "seeds = [0, 1, 2, 7]")
    file.write_text(f"{file.read_text()}{ADDED}")
    with pytest.raises(ConfigError, match="has changed since its last run") as error:
        sdcore("run", file)
    assert f"`--extend` adds until_error, seed 7 to {first}, `--new`" in error.value.fix
    assert sdcore("run", file, "--extend") == first
    stored = Experiment.model_validate_json(sdcore.stored(first))
    assert stored.added.conditions == ("until_error",) and stored.added.seeds == (7,)


def test_a_run_that_was_extended_is_found_by_both_files_and_keeps_what_was_added(sdcore, file):
    first = sdcore("run", file, "--quick")
    before = file.read_text()
    file.write_text(f"{before}{ADDED}")
    assert sdcore("run", file, "seeds=[0, 4]", "--extend") == first
    assert sdcore("run", file, "seeds=[0, 4]") == first  # once is enough
    assert sdcore("run", file, "seeds=[0, 4, 5]", "--extend") == first
    file.write_text(before)
    assert sdcore("run", file, "--quick") == first
    stored = Experiment.model_validate_json(sdcore.stored(first))
    assert stored.seeds == (0, 4, 5) and "until_error" in stored.conditions


def test_a_whole_run_takes_over_a_quick_one_only_where_that_is_asked(sdcore):
    quick = sdcore("run", "quickstart", "--quick")
    assert sdcore("run", "quickstart", "--extend") == quick
    assert sdcore("run", "quickstart") == quick  # it is whole now


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("rounds = 20", "rounds = 21", "training.rounds was 20, is 21"),
        ("rate = 4e-4", "rate = 5e-4", "conditions.grpo.learning_rate was 0.0004, is 0.0005"),
        ("[conditions.reference]", "[conditions.renamed]", "conditions.reference"),
        ("seeds = [0, 1, 2]", "seeds = [0, 1]", "seeds"),
    ],
)
def test_nothing_but_conditions_and_seeds_extends_a_run(sdcore, file, old, new, change):
    first = sdcore("run", file)
    edit(file, old, new)
    file.write_text(f"{file.read_text()}{ADDED}")
    with pytest.raises(ConfigError, match="another run") as error:
        sdcore("run", file, "--extend")
    assert change in error.value.got and error.value.where == first
    with pytest.raises(ConfigError, match="has changed") as error:
        sdcore("run", file)
    assert "--extend" not in error.value.fix


def test_other_values_of_a_sweep_do_not_extend_it(sdcore):
    grid = "conditions.grpo.learning_rate=[1e-4, 2e-4]"
    sdcore("run", "quickstart", grid)
    with pytest.raises(ConfigError, match="other values in a sweep"):
        sdcore("run", "quickstart", grid.replace("]", ", 4e-4]"), "--extend")


@pytest.mark.parametrize("other", [["--new"], ["--scale", "smoke"]])
def test_a_run_is_extended_or_something_else(sdcore, other):
    sdcore("run", "quickstart", "--quick")
    with pytest.raises(ConfigError, match="--extend with --"):
        sdcore("run", "quickstart", "--extend", *other)


def test_there_must_be_a_run_to_extend(sdcore):
    with pytest.raises(ConfigError, match="no run to extend"):
        sdcore("run", "quickstart", "--extend")


def test_a_file_that_is_changed_back_continues_its_run(sdcore, file):
    first = sdcore("run", file)
    edit(file, "rounds = 20", "rounds = 21")
    sdcore("run", file, "--new")
    edit(file, "rounds = 21", "rounds = 20")
    assert sdcore("run", file) == first


def test_comments_descriptions_defaults_and_the_preflight_are_no_change(sdcore, file):
    first = sdcore("run", file)
    edit(file, "[model]", "# a comment\n[model]\ndevice = 'auto'")
    edit(file, "Three kinds", "Several kinds")
    file.write_text(f"{file.read_text()}\n[diagnose]\nproblems = 3\n")
    assert sdcore("run", file) == first
    assert sdcore("run", file, "training.rounds=3") != first


def test_a_file_whose_run_never_started_may_change(tmp_path, monkeypatch, file, sdcore):
    monkeypatch.setattr(
        main, "run_experiment", lambda *_, **__: None
    )  # it failed before its first row
    CliRunner().invoke(main.app, ["run", str(file), "--workspace", str(tmp_path / "runs")])
    edit(file, "rounds = 20", "rounds = 21")
    assert sdcore("run", file)


def test_another_workspace_knows_nothing_of_it(sdcore, file):
    sdcore("run", file)
    edit(file, "rounds = 20", "rounds = 21")
    assert sdcore("run", file, workspace="others")


def test_a_file_that_needs_the_command_line_runs_with_it(sdcore):
    first = sdcore("run", "gsm8k", "problems.path=train.jsonl")  # the file alone does not validate
    assert sdcore("run", "gsm8k", "problems.path=other.jsonl") != first


@pytest.mark.parametrize("example", sorted(path.stem for path in EXPERIMENTS.glob("*.toml")))
def test_init_copies_a_shipped_experiment_with_its_comments(tmp_path, monkeypatch, example):
    monkeypatch.chdir(tmp_path)
    CliRunner().invoke(main.app, ["init", "my-own.toml", "--from", example], catch_exceptions=False)
    shipped = EXPERIMENTS / f"{example}.toml"
    lines = zip((tmp_path / "my-own.toml").read_text().splitlines(),
                shipped.read_text().splitlines(), strict=True)  # fmt: skip
    assert [new for new, old in lines if new != old] == ['name = "my-own"']
    path = ["problems.path=p"] if 'source = "jsonl"' in shipped.read_text() else []
    copied, original = (load_experiment(file, path) for file in ("my-own.toml", shipped))
    assert copied.model_copy(update={"name": original.name}) == original
    schema = (tmp_path / "experiment.schema.json").read_text()
    assert schema == (EXPERIMENTS / "experiment.schema.json").read_text()


@pytest.mark.parametrize(
    ("target", "message"),
    [("there.toml", "already exists"), ("a b.toml", "not a name"), ("mine", "not a name")],
)
def test_init_overwrites_nothing_and_takes_valid_names_only(tmp_path, monkeypatch, target, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "there.toml").write_text("mine")
    with pytest.raises(ConfigError, match=message):
        CliRunner().invoke(main.app, ["init", target], catch_exceptions=False)
    assert [path.name for path in tmp_path.iterdir()] == ["there.toml"]
    assert (tmp_path / "there.toml").read_text() == "mine"


@pytest.mark.parametrize("content", [b"caf\xe9", b"\xff\xfex\0", b"a = [", b"a = " + b"[" * 9999])
def test_init_starts_from_a_file_that_is_toml_only(content, tmp_path):
    (tmp_path / "odd.toml").write_bytes(content)
    arguments = ["init", str(tmp_path / "new.toml"), "--from", str(tmp_path / "odd.toml")]
    with pytest.raises(ConfigError, match="not TOML"):
        CliRunner().invoke(main.app, arguments, catch_exceptions=False)
    assert not (tmp_path / "new.toml").exists()
