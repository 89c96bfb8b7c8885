import html
import re
import socket
import subprocess
import sys
from threading import Thread

import httpx
import pytest
import uvicorn

from sdcore.reports.viewer.server import PAGE, viewer
from sdcore.store.database import Store
from sdcore.store.schema import TABLES
from tests.helpers.example import EXPERIMENT, fill, problem

RUN = EXPERIMENT.experiment_id


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = fill(Store(tmp_path_factory.mktemp("workspace") / "sdcore.duckdb", timeout=0.5))
    more = [problem(f"v{i}", "validation", i, f"{i} + <b>1</b> = ?") for i in range(PAGE + 10)]
    store.append_missing(problems=TABLES["problems"].frame(more))
    return store


@pytest.fixture(scope="module")
def site(store):
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(viewer(store), log_level="error"))
    thread = Thread(target=server.run, args=([listening],))
    thread.start()
    with httpx.Client(base_url=f"http://127.0.0.1:{listening.getsockname()[1]}") as client:
        yield client
    server.should_exit = True
    thread.join()


def texts(page, tag="td"):
    cells = re.findall(rf"<{tag}[^>]*>(.*?)</{tag}>", page, re.DOTALL)
    return [" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in cells]


def links(page, mark):
    """Addresses of the links that have the attribute."""
    found = [each for each in re.findall(r"<a([^>]*)>", page) if mark in each]
    return [html.unescape(re.search(r'href="([^"]*)"', each)[1]) for each in found]


def rows(page):
    return links(page, "data-row")


def a_rollout(store, **equals):
    return store.rows("rollouts", purpose="train", **equals).sort("rollout_id")["rollout_id"][0]


def test_the_runs_lead_to_their_problems(site):
    assert rows(site.get("/").text) == [f"/{RUN}"]
    page = site.get(f"/{RUN}?split=test").text
    assert len(rows(page)) == 3
    # the base has 2 test rollouts of the first problem, one right; each of the three conditions
    # has 8 (2 seeds, 2 checkpoints, 2 samples)
    assert texts(page)[:4] == ["12 + 30 - 5 = ?", "37", "test", "26"]


def test_problems_are_filtered_and_ordered_by_the_address(site):
    page = site.get(f"/{RUN}?split=test&condition=step_aligned&order=worst").text
    # After round 2 the fourth to sixth sample: 4 of 6 are right, so the third problem has one of
    # two, then (5 of 6) one of two: 50 %; the second has 1 of 2, then 2 of 2: 75 %.
    assert [text for text in texts(page) if "%" in text] == ["50 %", "75 %", "100 %"]
    assert rows(page)[0] == f"/{RUN}/problems/test2?condition=step_aligned"
    assert [text.split()[0] for text in texts(site.get(f"/{RUN}?text=42 %2B").text)[:1]] == ["42"]
    assert "nothing matches" in site.get(f"/{RUN}?text=no such thing").text


def test_long_lists_have_pages(site):
    first = site.get(f"/{RUN}?split=validation").text
    assert len(rows(first)) == PAGE and f"1 to {PAGE} of {PAGE + 10}" in first
    (later,) = links(first, 'rel="next"')
    second = site.get(later).text
    assert len(rows(second)) == 10 and "split=validation" in later
    assert links(second, 'rel="prev"') and not links(second, 'rel="next"')


def test_rollouts_of_a_problem(site):
    page = site.get(f"/{RUN}/problems/train0?condition=grpo&outcome=wrong").text
    # Two seeds and two rounds, of the two samples the first is wrong.
    assert len(rows(page)) == 4 and texts(page).count("38") == 4
    assert all("condition=grpo&outcome=wrong" in link for link in rows(page))
    assert links(page, 'rel="up"') == [f"/{RUN}"]


def test_neighbours_of_a_rollout_follow_the_filter(site):
    listed = rows(site.get(f"/{RUN}/problems/train0?seed=1&outcome=correct").text)
    page = site.get(listed[1]).text
    assert "2 of 6" in page
    assert links(page, 'rel="prev"') == [listed[0]] and links(page, 'rel="next"') == [listed[2]]
    assert links(page, 'rel="up"') == [f"/{RUN}/problems/train0?seed=1&outcome=correct"]


def test_a_rollout_shows_its_tokens_as_every_condition_saw_them(site, store):
    page = site.get(f"/{RUN}/rollouts/{a_rollout(store, condition='step_aligned')}").text
    assert [text for text in texts(page, "h3")[:1]] == ["step_aligned"]
    assert sorted(text.split()[0] for text in texts(page, "h3")) == [
        "grpo", "reference", "step_aligned",
    ]  # fmt: skip
    wrong = a_rollout(store, condition="step_aligned", correct=False)
    page = site.get(f"/{RUN}/rollouts/{wrong}").text
    assert '<span class="n5" title="advantage −2.30' in page  # below -2, the last bound
    assert "✗ first wrong step" in page and f"sdcore why rollouts {wrong}" in page


def test_text_from_the_tables_is_escaped(site, store):
    page = site.get(f"/{RUN}/rollouts/{a_rollout(store, condition='reference')}").text
    assert "42 - 5 = 37 &lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "<script>" not in page
    assert "0 + &lt;b&gt;1&lt;/b&gt; = ?" in site.get(f"/{RUN}?split=validation").text
    answer = site.get("/<img src=x>")
    assert answer.status_code == 404 and "<img" not in answer.text


def test_nothing_is_loaded_from_elsewhere_and_no_other_name_is_answered(site, store):
    answer = site.get(f"/{RUN}/rollouts/{a_rollout(store, condition='grpo')}")
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    loaded = re.findall(r'(?:src|href)="([^"]*)"', answer.text)
    assert loaded and all(re.match(r"/(?!/)|#", each) for each in loaded)
    for name in ("page.css", "viewer.css", "viewer.js"):
        assert site.get(f"/{name}").status_code == 200
    assert site.get("/", headers={"Host": "example.com"}).status_code == 400


@pytest.mark.parametrize("address", ["/no-run", f"/{RUN}/problems/x", f"/{RUN}/rollouts/x"])
def test_what_is_not_there_is_said(site, address):
    answer = site.get(address)
    assert answer.status_code == 404 and "no " in answer.text


def test_while_another_program_writes_the_page_says_so(site, store):
    script = "import duckdb, sys; c = duckdb.connect(sys.argv[1]); print(flush=True); input()"
    holder = subprocess.Popen([sys.executable, "-c", script, str(store.path)],
                              stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)  # fmt: skip
    holder.stdout.readline()
    try:
        answer = site.get("/")
        assert answer.status_code == 503 and "open in another process" in answer.text
    finally:
        holder.communicate("\n")
    assert site.get("/").status_code == 200
