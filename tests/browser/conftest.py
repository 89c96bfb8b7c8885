"""One workspace that is up for all pages, and the browser to look at them with."""

import os
import re
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from flows.servers import standing
from flows.servers.login import PAGE
from sdcore.system.ports import free_port

PATIENCE = 240_000  # ms; a machine that is busy with something else needs half of it for a run
TINY = """
name = "{name}"
seeds = [3]
[model]
name = "builtin:tiny-solver"
[problems]
source = "arithmetic"
train = 8
validation = 4
test = 4
[prompts]
student = "{{{{ question }}}}"
teacher = "Hint: {{{{ context }}}}\\n{{{{ question }}}}"
[sampling]
max_new_tokens = 96
[training]
rounds = 1
questions_per_round = 4
[evaluation]
samples = 2
validation_samples = 1
resamples = 100
[conditions.reference]
objective = "distill"
context = "reference"
learning_rate = 4e-4
"""


@pytest.fixture(scope="session")
def browser():
    """Chromium of the machine, or the one that `playwright install chromium` brought."""
    with sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        known = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
        path = next(filter(None, known), str(own) if own.exists() else None)
        if path is None:
            pytest.skip("no Chromium here: install one, or `playwright install chromium`")
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        expect.set_options(timeout=PATIENCE)
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def new_page(browser, workspace):
    """Makes pages, each of a person who comes for the first time and logs in to both servers."""
    with ExitStack() as opened:

        def make() -> Page:
            context = browser.new_context(viewport={"width": 1400, "height": 1000})
            opened.callback(context.close)
            context.set_default_timeout(PATIENCE)
            page = context.new_page()
            for server, title in (("Prefect", "Prefect Server"), ("MLflow", "MLflow")):
                page.goto((workspace / PAGE).as_uri())
                page.get_by_role("link", name=server).click()
                expect(page).to_have_title(re.compile(title))
            return page

        yield make


@pytest.fixture
def page(new_page):
    return new_page()


@pytest.fixture(scope="session")
def workspace(browser, tmp_path_factory):
    """A workspace with its services up, brought up and down by the command."""
    root = tmp_path_factory.mktemp("workspace")
    ports = ["--prefect-port", free_port(), "--mlflow-port", free_port()]
    sdcore("up", "--workspace", root, *ports)
    yield root
    sdcore("down", "--workspace", root)
    assert not standing.processes(root)


@pytest.fixture(scope="session")
def addresses(workspace):
    return standing.addresses(workspace)


@pytest.fixture(scope="session")
def experiment_file(tmp_path_factory):
    """Writes the smallest experiment under a name of its own."""

    def write(name: str) -> Path:
        path = tmp_path_factory.mktemp("experiments") / f"{name}.toml"
        path.write_text(TINY.format(name=name))
        return path

    return write


def sdcore(*arguments: object) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PREFECT_API_URL"}
    command = [Path(sys.executable).with_name("sdcore"), *map(str, arguments)]
    subprocess.run(command, env=environment, check=True, capture_output=True)
