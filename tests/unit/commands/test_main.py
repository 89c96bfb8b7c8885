"""What the command prints and refuses, in this process; no run is started."""

import errno
import io
import json
import os
import subprocess
import sys
from contextlib import contextmanager

import pytest
import typer
from filelock import FileLock
from typer.testing import CliRunner

import sdcore
from flows.commands import main, tables, terminal
from flows.servers import standing
from sdcore.config import LlmCriticConfig
from sdcore.errors import ConfigError, SdcoreError, StoreError
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, fill, run_row
from tests.helpers.paths import EXPERIMENTS

COMMANDS = sorted(typer.main.get_command(main.app).commands)
HEAVY = {"torch", "transformers", "prefect", "mlflow", "scipy", "matplotlib", "httpx", "psutil"}
ID = EXPERIMENT.experiment_id


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    fill(Store(root / "sdcore.duckdb"))
    return root


@pytest.fixture
def call(workspace):
    def call(*arguments: str) -> str:
        where = ["--workspace", str(workspace)]
        return CliRunner().invoke(main.app, [*arguments, *where], catch_exceptions=False).stdout

    return call


def loaded_after(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after some code."""
    code = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(run.stdout.splitlines()[-1].split())


def command(*arguments: str) -> str:
    return f"""
from flows.commands.main import main
sys.argv = {["sdcore", *arguments]!r}
try:
    main()
except SystemExit as end:
    assert not end.code, end
"""


def test_help_loads_no_heavy_library():
    assert len(COMMANDS) > 15
    helped = "\n".join(command(name, "--help") for name in COMMANDS)
    assert not loaded_after(helped) & {*HEAVY, "numpy"}


def test_reading_a_workspace_loads_no_heavy_library(workspace):
    where = ["--workspace", str(workspace)]
    for arguments in (["list"], ["query", "FROM experiments"], ["tables"]):
        more = where if arguments[0] != "tables" else []
        assert not loaded_after(command(*arguments, *more)) & HEAVY
    report = loaded_after(command("report", "small", *where))
    assert not report & {"torch", "transformers", "prefect", "mlflow", "httpx", "psutil"}


def test_the_version_is_the_packages():
    assert CliRunner().invoke(main.app, ["--version"]).stdout == f"sdcore {sdcore.__version__}\n"


def test_the_schema_is_printed_as_shipped():
    printed = CliRunner().invoke(main.app, ["schema"]).stdout
    assert printed == (EXPERIMENTS / "experiment.schema.json").read_text("utf-8")


@pytest.mark.parametrize(("typed", "meant"), [("quer", "query"), ("initt", "init")])
def test_a_mistyped_command_gets_a_suggestion(typed, meant):
    result = CliRunner().invoke(main.app, [typed])
    assert result.exit_code == 2 and f"Did you mean '{meant}'?" in result.output


@pytest.mark.parametrize("typed", ["smal", ID[:-1] + "x"])
def test_a_mistyped_run_gets_a_suggestion(call, typed):
    with pytest.raises(SdcoreError) as error:
        call("report", typed)
    assert error.value.fix == f"did you mean {'small' if typed == 'smal' else ID}?"


def test_a_run_that_is_like_none_is_pointed_to_the_list(call):
    with pytest.raises(SdcoreError, match="`sdcore list` shows"):
        call("report", "entirely-different")


def test_a_mistyped_table_gets_a_suggestion(call):
    with pytest.raises(StoreError) as error:
        CliRunner().invoke(main.app, ["tables", "rollout"], catch_exceptions=False)
    assert error.value.fix == "did you mean rollouts?"


def test_wide_results_show_what_fits_and_say_how_to_get_the_rest(call, monkeypatch):
    monkeypatch.setattr(terminal.console, "width", 100)
    lines = call("query", "SELECT * FROM rollouts LIMIT 2").splitlines()
    assert max(map(len, lines)) <= 100
    assert ID in lines[4] and "experiment_id" in lines[1]  # no column is cut to a few characters
    assert "columns (" in lines[-2] and "--output FILE.parquet" in lines[-1]


def test_long_results_are_capped_and_counted(call):
    lines = call("query", "SELECT unnest(range(1000)) AS n").splitlines()
    assert 40 <= len(lines) < 55
    assert "the first 40 rows at most" in lines[-1] and "--output FILE.parquet" in lines[-1]
    whole = call("query", "SELECT unnest(range(1000)) AS n", "--format", "csv").splitlines()
    assert len(whole) == 1001


def test_short_results_are_whole(call):
    printed = call("query", "SELECT 'a' AS letter, 2 AS n")
    assert "letter" in printed and "shown" not in printed and "--output" not in printed


@pytest.mark.parametrize(
    ("sql", "cause", "names_tables"),
    [
        ("SELECT * FROM rollout", "Table with name rollout does not exist", True),
        ("SELECT nonesuch FROM rollouts", "nonesuch", False),
        ("SELEC 1", "syntax error", False),
    ],
)
def test_the_cause_of_a_bad_query_is_what_was_got(call, sql, cause, names_tables):
    with pytest.raises(StoreError) as error:
        call("query", sql)
    assert cause in str(error.value.got) and error.value.expected is None
    assert ("tables: " in error.value.fix and "rollouts" in error.value.fix) is names_tables


@pytest.mark.parametrize("sql", ["DELETE FROM rollouts", "SELECT 1; DROP TABLE rollouts"])
def test_a_statement_that_writes_is_refused(call, sql):
    with pytest.raises(StoreError, match="one SELECT"):
        call("query", sql)


def test_a_whole_result_goes_into_a_file(call, tmp_path):
    target = tmp_path / "rows.csv"
    assert "rows.csv: 1,000 rows" in call("query", "FROM range(1000)", "--output", str(target))
    assert len(target.read_text().splitlines()) == 1001
    with pytest.raises(SdcoreError, match=r"\.parquet, \.csv or"):
        call("query", "FROM range(1000)", "--output", "rows.xlsx")


def test_a_result_goes_through_a_link_and_into_a_pipe(call, tmp_path):
    (tmp_path / "link.csv").symlink_to(tmp_path / "there" / "rows.csv")
    (tmp_path / "there").mkdir()
    call("query", "SELECT 7 AS x", "--output", str(tmp_path / "link.csv"))
    assert (tmp_path / "link.csv").is_symlink()
    assert (tmp_path / "there" / "rows.csv").read_text() == "x\n7\n"
    os.mkfifo(pipe := tmp_path / "pipe.csv")
    reader = subprocess.Popen(["cat", pipe], stdout=subprocess.PIPE, text=True)
    try:
        call("query", "SELECT 8 AS x", "--output", str(pipe))
        assert pipe.is_fifo() and reader.communicate(timeout=30)[0] == "x\n8\n"
    finally:
        reader.kill()


@pytest.mark.parametrize("form", ["table", "csv", "json", "parquet"])
def test_a_terminal_gets_no_escape_sequences(call, monkeypatch, form):
    """They are data for a pipe, and commands for a terminal."""
    sql = "SELECT 'a' || chr(27) || ']0;t' || chr(7) || chr(155) || '2J' AS t"
    monkeypatch.setattr(terminal, "on_terminal", lambda: True)
    if form == "parquet":
        with pytest.raises(SdcoreError, match="--output"):
            call("query", sql, "--format", form)
        return
    printed = call("query", sql, "--format", form)
    assert "]0;t" in printed and not set(printed) & set("\x1b\x07\x9b")
    monkeypatch.setattr(terminal, "on_terminal", lambda: False)
    if form == "csv":
        assert "a\x1b]0;t\x07\x9b2J" in call("query", sql, "--format", form)


def test_why_compares_with_a_run_or_an_experiment_file(call, workspace, tmp_path):
    key = Store(workspace / "sdcore.duckdb").rows("scores")["score_id"][0]
    same = json.loads(call("why", "scores", key, "--against", "small", "--json"))
    assert same["changes"] == []


def test_what_is_unknown_is_null_in_json(call):
    """The signals of one problem have no interval; JSON has no NaN."""
    printed = call("report", "small", "--json")
    signals = json.loads(printed, parse_constant=pytest.fail)["signals"]
    assert signals[0]["mean_before"] is not None and signals[0]["low_before"] is None


def test_the_list_has_the_progress_of_each_run(call, workspace):
    (run,) = json.loads(call("list", "--json"))
    assert run["experiment_id"] == ID and run["compared"]
    assert run["rollouts"] == len(Store(workspace / "sdcore.duckdb").rows("rollouts"))


@pytest.mark.parametrize(
    "arguments",
    [("resume",), ("rerun", "--from", "evaluate", "--condition", "grpo", "--round", "2")],
)
def test_the_run_of_a_search_is_not_run_by_itself(monkeypatch, tmp_path, arguments):
    """It would sample the test split, after which the search could not conclude any more."""
    searched = EXPERIMENT.model_copy(update={"name": "small-design", "search_of": "small"})
    row = run_row() | {"experiment_id": searched.experiment_id, "name": searched.name}
    row |= {"config": searched.model_dump_json()}
    store = Store(tmp_path / "sdcore.duckdb")
    store.append_missing(experiments=TABLES["experiments"].frame([row]))
    monkeypatch.setattr(main, "served", lambda root: pytest.fail("a server is started"))
    name, *more = arguments
    with pytest.raises(ConfigError, match="test split") as refused:
        CliRunner().invoke(
            main.app, [name, "small-design", *more, "--workspace", str(tmp_path)],
            catch_exceptions=False,
        )  # fmt: skip
    assert "`sdcore design FILE` continues it" in str(refused.value)


@pytest.mark.parametrize(
    ("code", "fix"),
    [(errno.ENOSPC, "disk space"), (errno.EROFS, "--workspace"), (errno.EACCES, "--workspace"),
     (errno.ENAMETOOLONG, "shorter path"), (errno.EFBIG, "ulimit -f"), (errno.EIO, "that file")],
)  # fmt: skip
def test_an_error_of_the_system_has_a_cause_a_place_and_a_fix(monkeypatch, capsys, code, fix):
    def fail():
        raise OSError(code, os.strerror(code), "/data/runs/x")

    monkeypatch.setattr(main, "app", lambda arguments: fail())
    with pytest.raises(SystemExit) as caught:
        main.main()
    printed = capsys.readouterr().err
    assert caught.value.code == 1 and "--debug" not in printed
    assert f"got: {os.strerror(code)}" in printed and "where: /data/runs/x" in printed
    assert fix in printed.partition("fix: ")[2]


def test_a_folder_that_is_gone_is_named(monkeypatch, capsys, tmp_path):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    monkeypatch.setattr(main, "app", lambda arguments: os.getcwd())
    with pytest.raises(SystemExit):
        main.main()
    assert "the current folder has been deleted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error", [MemoryError(), ImportError("x.so: failed to map segment from shared object")]
)
def test_a_limit_of_memory_is_named(monkeypatch, capsys, error):
    def fail():
        raise error

    monkeypatch.setattr(main, "app", lambda arguments: fail())
    with pytest.raises(SystemExit):
        main.main()
    assert (
        "`ulimit -v` shows it" in (printed := capsys.readouterr().err) and "--debug" not in printed
    )


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_what_a_terminal_cannot_encode_is_escaped(workspace, encoding, monkeypatch):
    arguments = ["query", "SELECT '5–7' AS a, count(*) AS n FROM problems"]
    monkeypatch.setattr(sys, "argv", ["sdcore", *arguments, "--workspace", str(workspace)])
    printed = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(printed, encoding))
    with pytest.raises(SystemExit) as caught:
        main.main()
    sys.stdout.flush()
    assert not caught.value.code
    assert r"5\u20137" in printed.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("code", "said", "fix"),
    [(errno.ENOSPC, "No space left", "free disk space"),
     (errno.ENOENT, "No usable temporary directory found in ['/tmp']", "set TMPDIR")],
)  # fmt: skip
def test_what_names_no_file_has_a_fix_too(monkeypatch, capsys, code, said, fix):
    def fail():
        raise OSError(code, said)

    monkeypatch.setattr(main, "app", lambda arguments: fail())
    with pytest.raises(SystemExit):
        main.main()
    printed = capsys.readouterr().err
    assert f"got: {said}" in printed and f"fix: {fix}" in printed


def test_the_tables_do_not_get_the_number_of_a_closed_stream():
    code = (
        "import os, sys; from flows.commands.main import main; sys.argv = ['sdcore', '--version']\n"
        "try: main()\n"
        "except SystemExit as end: assert not end.code\n"
        "assert os.open(os.devnull, os.O_RDONLY) > 2"
    )
    closed = f'exec "{sys.executable}" -c "$0" <&- >&- 2>&-'
    assert subprocess.run(["sh", "-c", closed, code]).returncode == 0


def test_nothing_follows_an_error(tmp_path):
    # A file that needs a path: the error comes before Prefect is loaded.
    code = "from flows.commands.main import main; main()"
    ended = subprocess.run(
        [sys.executable, "-c", code, "run", "gsm8k", "--workspace", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert ended.returncode != 0
    first, *others = ended.stderr.splitlines()
    assert first.startswith("error: ")
    assert [line.split(":")[0].strip() for line in others] == ["got", "where", "fix"]


def test_the_keys_of_all_blocks_are_read_from_one_server(tmp_path, monkeypatch, capsys):
    """A second one in the same process would be refused: Prefect has read its settings."""
    started = []

    @contextmanager
    def served(root):
        started.append(root)
        yield lambda: "http://127.0.0.1:1/api"

    monkeypatch.setattr(tables, "served", served)
    monkeypatch.setattr("tasks.run.critiques.secret_block", {"small": " a-key\n"}.get)
    models = [
        LlmCriticConfig(kind="llm", model="m", base_url="http://127.0.0.1:1/v1", api_key_block=name)
        for name in ("small", "large")
    ]
    keys = tables._keys(models, tmp_path)
    assert {where: key.text for where, key in keys.items()} == {"the block secret/small": "a-key"}
    assert started == [tmp_path] and "secret/large, which is not there" in capsys.readouterr().err


@pytest.mark.parametrize("spelling", [".", "../workspace", "../link", "absolute"])
def test_services_start_and_end_under_one_path_one_command_at_a_time(
    tmp_path, monkeypatch, spelling
):
    root, done = tmp_path / "workspace", []
    root.mkdir()
    (tmp_path / "link").symlink_to(root)
    monkeypatch.chdir(root)

    def work(named, *_):
        lock = FileLock(root / "prefect" / "start.lock")
        with pytest.raises(TimeoutError):
            lock.acquire(timeout=0)
        done.append(named)
        return 0

    monkeypatch.setattr(standing, "start", work)
    monkeypatch.setattr(standing, "stop", work)
    where = ["--workspace", str(root) if spelling == "absolute" else spelling]
    CliRunner().invoke(main.app, ["up", *where], catch_exceptions=False)
    (root / "services.json").write_text("{}")
    CliRunner().invoke(main.app, ["down", *where], catch_exceptions=False)
    assert done == [root] * 3  # what is left of an earlier start, the start, the end
