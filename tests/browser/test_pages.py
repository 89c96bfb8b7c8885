"""What a person does in a browser: start, watch, retry, compare, read."""

import re
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from sdcore.config import Experiment, load_experiment
from sdcore.store.database import Store

pytestmark = [pytest.mark.browser, pytest.mark.slow]


def start(page: Page, prefect: str, experiment: Path) -> None:
    """Fill in the form of the quickstart's deployment and submit it; its run's page opens."""
    page.goto(prefect)
    page.get_by_role("link", name="Deployments").click()
    page.get_by_placeholder("Search deployments").fill("quickstart")  # ten to a page
    page.get_by_role("link", name="quickstart", exact=True).click()
    page.get_by_role("button", name="Run").click()
    page.get_by_text("Custom run").click()
    page.get_by_label("experiment", exact=True).fill(str(experiment))
    page.get_by_label("Rounds (Optional)").fill("2")
    page.get_by_role("button", name="Add item").nth(1).click()  # of conditions, after seeds
    page.get_by_label("Name", exact=True).fill("reference")
    page.get_by_label("Group size (Optional)").fill("2")
    # By key, since a busy page may move its button under the pointer; and the notice that links to
    # the run stands for seconds only.
    with page.expect_response(re.compile("/create_flow_run$")) as answer:
        page.get_by_role("button", name="Submit").press("Enter")
    assert answer.value.ok, answer.value.text()
    pages = page.url.split("/deployments/")[0]  # of this one of Prefect's two user interfaces
    page.goto(f"{pages}/runs/flow-run/{answer.value.json()['id']}")


@pytest.fixture(scope="module")
def first(new_page, addresses, experiment_file):
    """The page of an experiment that was run from its form."""
    page = new_page()
    start(page, addresses["prefect"], experiment_file("first"))
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()
    return page


def test_a_run_started_from_its_form_completes_and_shows_its_artifacts(first, addresses):
    first.get_by_role("tab", name="Artifacts").click()
    first.get_by_role("link", name="first-comparison").click()
    first.locator("a[href*='/artifacts/artifact/']").first.click()  # its newest version
    expect(first.get_by_role("cell", name="reference − base").first).to_be_visible()
    expect(first.get_by_role("img", name="learning curves")).to_be_visible()


def test_what_the_form_was_filled_in_with_is_what_ran(first, workspace):
    (row,) = Store(workspace / "sdcore.duckdb").rows("experiments", name="first").to_dicts()
    settings = Experiment.model_validate_json(row["config"])
    assert settings.training.rounds == 2
    assert settings.conditions["reference"].group_size == 2
    assert settings.conditions["reference"].learning_rate == 4e-4  # the file's


def test_a_failed_stage_is_retried_and_finishes(page, workspace, addresses, experiment_file):
    file = experiment_file("obstructed")
    changed = ["training.rounds=2", "conditions.reference.group_size=2"]
    name = load_experiment(file, changed).experiment_id
    obstacle = workspace / "checkpoints" / name / "reference"
    obstacle.parent.mkdir(parents=True)
    obstacle.write_text("a file where the stage needs a folder")
    start(page, addresses["prefect"], file)
    expect(page.get_by_text("Failed", exact=True).first).to_be_visible()
    obstacle.unlink()
    page.get_by_role("button", name="Open menu").click()
    page.get_by_role("menuitem", name="Retry").click()
    page.get_by_role("alertdialog").get_by_role("button", name="Retry").click()
    expect(page.get_by_text("Completed", exact=True).first).to_be_visible()


def test_mlflow_finds_the_runs_and_compares_them(first, page, addresses):
    page.goto(addresses["mlflow"])
    page.get_by_text("Model training").first.click()
    page.get_by_role("link", name="first", exact=True).click()
    rows = page.locator(".ag-row")  # the grid gives its rows no names
    rows.filter(has_text="first-").get_by_role("button").first.click()  # shows the children
    for run in ("base/seed-3", "reference/seed-3"):
        rows.filter(has_text=run).get_by_label("toggle row selection").check()
    page.get_by_role("button", name="Compare").click()
    expect(page.get_by_text("Comparing 2 Runs")).to_be_visible()
    expect(page.get_by_text("test/avg_at_k").first).to_be_visible()


def test_who_does_not_log_in_sees_nothing(browser, addresses):
    context = browser.new_context()
    page = context.new_page()
    page.goto(addresses["prefect"])
    expect(page).to_have_url(re.compile("/login"))
    expect(page.get_by_role("button", name="Login")).to_be_visible()
    assert context.request.get(addresses["mlflow"]).status == 401
    context.close()


def test_the_report_needs_no_network_and_has_no_errors(first, page, workspace):
    (report,) = (workspace / "reports").glob("first-*.html")
    errors, requests = [], []
    page.on("console", lambda message: errors.append(message) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    expect(page.get_by_role("heading").first).to_be_visible()
    assert errors == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
