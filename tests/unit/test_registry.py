import subprocess
import sys
from textwrap import dedent

import pytest

from sdcore import registry
from sdcore.config import Experiment, load_experiment
from sdcore.contexts import CONTEXTS, Context, ContextInputs
from sdcore.errors import ConfigError, PluginError
from tests.helpers.paths import QUICKSTART, ROOT

INPUTS = ContextInputs("1+1?", None, "2", "<answer>3</answer>", correct=False)
CODE = '''
from sdcore.contexts import context
from {helper} import HINT


@context()
def hint(inputs):
    """A hint: the first character
    of the reference.

    Expected: little.
    """
    return HINT + inputs.reference[:1]
'''


@pytest.fixture
def module(tmp_path):
    """Write a module with a context, and a helper beside it, under names that no test shares."""
    made = []

    def write(name, hint="It starts with "):
        (tmp_path / f"{name}.py").write_text(CODE.format(helper=f"{name}_words"))
        (tmp_path / f"{name}_words.py").write_text(f"HINT = {hint!r}\n")
        made.extend((name, f"{name}_words"))
        return name

    yield write
    for name in made:
        sys.modules.pop(name, None)


def fingerprint(folder, *overrides):
    """Of an experiment that is loaded in a process of its own."""
    file = folder / "own.toml"
    file.write_text(QUICKSTART.read_text())
    code = f"""
        from pathlib import Path
        from sdcore.config import load_experiment
        print(load_experiment(Path({str(file)!r}), {list(overrides)!r}).fingerprint)
    """
    run = [sys.executable, "-c", dedent(code)]
    found = subprocess.run(run, cwd=ROOT, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    return found.stdout.strip()


def test_a_context_of_ones_own_is_named_by_its_import_path(module, tmp_path):
    name = f"{module('plug_a')}:hint"
    with registry.importable(tmp_path):
        own = CONTEXTS[name]
    assert isinstance(own, Context) and own.name == name
    assert own.about == "A hint: the first character of the reference."
    assert own.predicted == "Expected: little."
    assert own.build(INPUTS) == "It starts with 2"


def test_modules_are_found_beside_the_experiment_file_and_again_from_the_stored_settings(
    module, tmp_path
):
    file, name = tmp_path / "own.toml", module("plug_b")
    file.write_text(QUICKSTART.read_text())
    experiment = load_experiment(file, [f"conditions.reference.context={name}:hint"])
    assert experiment.modules == tmp_path and not {str(tmp_path)} & {*sys.path}
    assert experiment.known_contexts[f"{name}:hint"].build(INPUTS) == "It starts with 2"
    assert [*experiment.plugins] == [f"context {name}:hint"]
    for each in (name, f"{name}_words"):
        del sys.modules[each]
    again = Experiment.model_validate_json(experiment.model_dump_json())
    assert again == experiment and again.fingerprint == experiment.fingerprint
    again.require_same_plugins()


@pytest.mark.parametrize("changed", ["{name}.py", "{name}_words.py"])
def test_code_that_changes_makes_another_experiment(module, tmp_path, changed):
    name = module("plug_c")
    override = f"conditions.reference.context={name}:hint"
    before = fingerprint(tmp_path, override)
    assert fingerprint(tmp_path, override) == before
    with (tmp_path / changed.format(name=name)).open("a") as file:
        file.write("\n# other words\n")
    assert fingerprint(tmp_path, override) != before


def test_a_stored_experiment_does_not_go_on_with_other_code(module, tmp_path):
    file, name = tmp_path / "own.toml", module("plug_d")
    file.write_text(QUICKSTART.read_text())
    experiment = load_experiment(file, [f"conditions.reference.context={name}:hint"])
    stored = experiment.model_dump_json()
    module("plug_d", "The first digit is ")
    with pytest.raises(ConfigError, match="changed since it was imported"):
        load_experiment(file, [f"conditions.reference.context={name}:hint"])
    for each in (name, f"{name}_words"):
        del sys.modules[each]
    again = Experiment.model_validate_json(stored)
    assert again.fingerprint == experiment.fingerprint
    with pytest.raises(ConfigError, match=rf"not the one[\s\S]*context {name}:hint"):
        again.require_same_plugins()


def test_an_installed_package_registers_by_entry_point(module, tmp_path, monkeypatch):
    name = module("plug_e")
    (tmp_path / "plug_e-1.0.dist-info").mkdir()
    points = f"[sdcore.contexts]\nplug-hint = {name}:hint\n"
    (tmp_path / "plug_e-1.0.dist-info" / "entry_points.txt").write_text(points)
    (tmp_path / "plug_e-1.0.dist-info" / "METADATA").write_text("Name: plug_e\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "plug-hint" in CONTEXTS and CONTEXTS.entries()["plug-hint"].build(INPUTS)
    experiment = load_experiment(QUICKSTART, ["conditions.reference.context=plug-hint"])
    assert [*experiment.plugins] == ["context plug-hint"] and experiment.distilled[0] == "plug-hint"
    (tmp_path / "plug_e-1.0.dist-info" / "entry_points.txt").write_text(
        points.replace("plug-hint", "outcome")
    )
    with pytest.raises(ConfigError, match=rf"the name of a built-in one\s+got: {name}:hint"):
        CONTEXTS.entries()


def test_an_exception_is_put_at_the_line_of_the_code_that_led_to_it(tmp_path):
    (tmp_path / "plug_reader.py").write_text(
        "import json\nimport sdcore\n\n@sdcore.context()\ndef read(inputs):\n    json.loads('{')\n"
    )
    with registry.importable(tmp_path):
        context = CONTEXTS["plug_reader:read"]
        with pytest.raises(PluginError, match="'plug_reader:read' fails") as caught:
            context.build(INPUTS)
    assert caught.value.where.startswith(f"{tmp_path / 'plug_reader.py'}, line 6, ")
    assert str(caught.value.got).startswith("JSONDecodeError: ")


def test_built_in_names_have_no_digest():
    assert load_experiment(QUICKSTART).plugins == {}
    assert CONTEXTS.digest("reference") is None


def test_the_digest_covers_what_a_module_imports_from_beside_it_and_nothing_installed(module):
    import tests.helpers.tiny as beside

    files = registry._files(beside)
    assert "tests.helpers.tiny" in files
    assert not {name for name in files if name.partition(".")[0] in ("torch", "sdcore", "numpy")}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("outcom", r"no context of this name[\s\S]*did you mean outcome\?"),
        ("no_such_module:x", r"cannot be imported[\s\S]*No module named 'no_such_module'"),
        ("sdcore.contexts:outcom", r"no such attribute[\s\S]*did you mean outcome"),
        ("sdcore.contexts:NULL", r"this is no context[\s\S]*of type str[\s\S]*@sdcore.context"),
        ("sdcore.contexts:", r"no such attribute"),
        (":x", r"cannot be imported"),
    ],
)
def test_a_name_that_leads_nowhere_says_why(name, message):
    with pytest.raises(ConfigError, match=message):
        CONTEXTS[name]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("1 / 0", "ZeroDivisionError"), ("raise SystemExit(0)", "SystemExit"),
        ("x = '\0'", "SyntaxError"), ("x = 'caf\udce9'", "SyntaxError"),
    ],
)  # fmt: skip
def test_a_module_that_fails_says_how(text, name, tmp_path):
    (tmp_path / "plug_broken.py").write_text(text, "utf-8", errors="surrogateescape")
    with (
        registry.importable(tmp_path),
        pytest.raises(ConfigError, match=rf"ends with an error[\s\S]*{name}"),
    ):
        CONTEXTS["plug_broken:x"]


@pytest.mark.parametrize(
    "text", ["x = (", "x = '\0'", 'x = "caf\udce9"', "x = " + "-" * 100_000 + "1"]
)
def test_a_helper_that_is_imported_later_must_be_python_too(module, text, tmp_path):
    name = module("plug_i")
    with (tmp_path / "plug_i.py").open("a") as file:
        file.write("\n\ndef later():\n    import plug_helper\n")
    (tmp_path / "plug_helper.py").write_text(text, "utf-8", errors="surrogateescape")
    with (
        registry.importable(tmp_path),
        pytest.raises(ConfigError, match=r"is not Python[\s\S]*plug_helper\.py"),
    ):
        CONTEXTS.digest(f"{name}:hint")


def test_what_is_imported_later_is_hashed_without_being_imported(module, tmp_path):
    """`plug_package` has an __init__ that fails; `plug_space.inner` are folders without any."""
    name = module("plug_k")
    with (tmp_path / "plug_k.py").open("a") as file:
        file.write("\n\ndef later():\n    import plug_package.one\n")
        file.write("    from plug_space.inner import two\n")
    for folder in ("plug_package", "plug_space/inner"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "plug_package" / "__init__.py").write_text("print('!')\nraise RuntimeError\n")
    for file in ("plug_package/one.py", "plug_space/inner/two.py"):
        (tmp_path / file).write_text("")
    with registry.importable(tmp_path):
        assert CONTEXTS[f"{name}:hint"]
        files = registry._files(sys.modules[name])
    lazy = {"plug_package", "plug_package.one", "plug_space.inner.two"}
    assert set(files) == {"plug_k", "plug_k_words"} | lazy
    assert not [each for each in sys.modules if each.startswith(("plug_package", "plug_space"))]


def test_two_modules_of_one_name_are_not_mixed_up(module, tmp_path):
    name = module("plug_f")
    with registry.importable(tmp_path):
        assert CONTEXTS[f"{name}:hint"]
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / f"{name}.py").write_text("")
    with (
        registry.importable(tmp_path / "other"),
        pytest.raises(ConfigError, match="another module of this name"),
    ):
        CONTEXTS[f"{name}:hint"]


def test_a_context_that_gives_no_text_is_refused():
    from sdcore.contexts import context
    from sdcore.errors import DataError

    @context()
    def number(inputs):
        return 3

    with pytest.raises(DataError, match=r"'number' is no text\s+got: 3"):
        number.build(INPUTS)
    with pytest.raises(ConfigError, match=r"no such field\s+got: critque"):
        context("critque")


def test_an_implementation_is_found_without_a_look_into_folders(monkeypatch):
    """Which another thread's import disturbs: a run of 20 minutes ended with it."""

    def disturbed():
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr(registry.importlib, "invalidate_caches", disturbed)
    assert registry.loaded("sdcore.grading.binary:by_answer").__name__ == "by_answer"
