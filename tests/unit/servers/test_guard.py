"""The guard before an application that says "in", and the key's file."""

import os
from urllib.parse import urlsplit

import pytest
from starlette.responses import PlainTextResponse
from starlette.testclient import TestClient, WebSocketDenialResponse

from flows.commands.tables import view
from flows.servers import guard
from flows.servers.login import PAGE, Login, login, remove_page, write_page
from sdcore.errors import SdcoreError
from sdcore.reports.viewer import server
from sdcore.store.database import Store
from tests.helpers.example import EXPERIMENT, fill

OWN, KEY = "http://127.0.0.1:4200", Login("k" * 43)
INSIDE, AFTER = PlainTextResponse("in"), PlainTextResponse("welcome")


def client(authorization=None):
    app = guard._guarded(INSIDE, AFTER, authorization)
    return TestClient(app, OWN, headers={}, follow_redirects=False)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Origin": OWN}, 200),
        ({"Origin": "http://localhost:4200"}, 200),
        ({"Host": "localhost:4200"}, 200),
        ({"Origin": "http://127.0.0.1:5000"}, 403),  # another local program's page
        ({"Origin": "http://127.0.0.1"}, 403),
        ({"Origin": "https://127.0.0.1:4200"}, 403),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:4200.evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:4200@evil.example"}, 403),
        ({"Origin": "http://[bad"}, 403),
        ({"Origin": "null"}, 403),
        ({"Host": "evil.example"}, 400),  # its name was made to point here
        ({"Host": "evil.example:4200", "Origin": "http://evil.example:4200"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Host": ""}, 400),
    ],
)
def test_only_this_machines_name_and_the_servers_own_pages_come_in(headers, status):
    assert client().post("/api/anything", headers=headers).status_code == status


@pytest.mark.parametrize("origin", [None, OWN, "http://evil.example"])
def test_websockets_are_guarded_too(origin):
    headers = {"Origin": origin} if origin else {}
    with (
        pytest.raises(WebSocketDenialResponse) as refused,
        client("Basic x").websocket_connect("ws://127.0.0.1:4200/api/events/out", headers=headers),
    ):
        pass
    assert refused.value.status_code == (403 if origin == "http://evil.example" else 401)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        (None, 401), ("", 401), ("Basic", 401), (f"Basic {Login('wrong').encoded}", 401),
        (f"Bearer {KEY.key}", 401), (f"Basic {KEY.encoded}x", 401), ("Basic \xe9", 401),
        (f"Basic {KEY.encoded}", 200),
    ],
)  # fmt: skip
def test_the_key_opens_and_nothing_else_does(given, status):
    headers = {} if given is None else {"Authorization": given.encode("latin-1")}
    answer = client(f"Basic {KEY.encoded}").get("/", headers=headers)
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)


def test_the_health_of_a_server_is_no_secret_and_the_login_leads_in():
    opened = TestClient(guard.guarded(INSIDE, KEY, "/first", ("/health",)), OWN)
    assert opened.get("/health").text == "in"
    assert opened.get("/health/x").status_code == 401
    assert opened.get("/sdcore-login").status_code == 401
    assert client().get("/sdcore-login").text == "welcome"


@pytest.fixture(scope="module")
def workspace(tmp_path_factory):
    root = tmp_path_factory.mktemp("workspace")
    fill(Store(root / "sdcore.duckdb"))
    return root


@pytest.fixture
def viewed(workspace, monkeypatch, capsys):
    """A client of what `sdcore view` serves, and the link that the command printed."""
    served = []
    monkeypatch.setattr(server, "serve", lambda app, port: served.append((app, port)))
    view("small", workspace, 0)
    ((app, port),) = served
    printed = capsys.readouterr().out.strip()
    with TestClient(app, f"http://127.0.0.1:{port}", follow_redirects=False) as opened:
        yield opened, printed


def test_the_link_that_view_prints_opens_the_run_by_an_address_without_the_key(viewed):
    opened, printed = viewed
    parts = urlsplit(printed)
    assert (parts.username, len(parts.password), parts.path) == ("sdcore", 43, "/sdcore-login")
    answer = opened.get(printed)
    own = f"http://127.0.0.1:{parts.port}/{EXPERIMENT.experiment_id}"
    assert (answer.status_code, answer.headers["location"]) == (303, own)
    page = opened.get(own, auth=("sdcore", parts.password))
    assert page.status_code == 200 and "12 + 30 - 5" in page.text
    assert parts.password not in page.text and "set-cookie" not in page.headers


@pytest.mark.parametrize(
    "path", ["/", f"/{EXPERIMENT.experiment_id}", "/health", "/sdcore-login", "/page.css", "/none"]
)
def test_without_the_key_the_viewer_shows_nothing(viewed, path):
    opened, printed = viewed
    key = urlsplit(printed).password
    wrong = [("sdcore", ""), ("", key), ("sdcore", key[:-1])]
    elsewhere = [{"params": {"key": key}}, {"headers": {"Cookie": f"key={key}"}}]
    for given in ({}, *elsewhere, *({"auth": each} for each in wrong)):
        answer = opened.get(path, **given)
        assert (answer.status_code, answer.text) == (401, guard.ASK)


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 400),
        ({"Host": "127.0.0.1.evil.example"}, 400),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Origin": "null"}, 403),
    ],
)
def test_with_the_key_other_names_and_pages_are_refused_by_the_viewer(viewed, headers, status):
    opened, printed = viewed
    assert opened.get(printed, headers=headers).status_code == status


def test_a_prefect_server_without_a_key_does_not_start(monkeypatch):
    from prefect.settings import PREFECT_SERVER_API_AUTH_STRING, temporary_settings

    with (
        temporary_settings(restore_defaults={PREFECT_SERVER_API_AUTH_STRING}),
        pytest.raises(RuntimeError, match="AUTH_STRING is not set"),
    ):
        guard.prefect()


def test_the_key_is_random_is_kept_and_is_its_owners(tmp_path):
    (tmp_path / "other").mkdir()
    found = login(tmp_path)
    assert login(tmp_path) == found != login(tmp_path / "other")
    assert len(found.key) == 43  # 32 random bytes
    assert (tmp_path / "login.key").stat().st_mode & 0o777 == 0o600
    assert found.key not in repr(found)


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o602])
def test_a_key_that_others_may_read_or_write_is_refused(tmp_path, mode):
    login(tmp_path)
    os.chmod(tmp_path / "login.key", mode)
    with pytest.raises(SdcoreError, match=rf"mode {mode:o}[\s\S]*login.key[\s\S]*delete the file"):
        login(tmp_path)


@pytest.mark.parametrize("text", [b"", b"short", b"\xff" * 43, b"k" * 42 + b"\n" + b"k"])
def test_a_key_that_is_damaged_is_refused(tmp_path, text):
    login(tmp_path)
    (tmp_path / "login.key").write_bytes(text)  # an empty one would let anybody in
    with pytest.raises(SdcoreError, match=r"damaged[\s\S]*login.key[\s\S]*delete the file"):
        login(tmp_path)


def test_the_login_page_is_its_owners_only_and_goes(tmp_path):
    (tmp_path / PAGE).touch(0o644)
    page = write_page(tmp_path, {"prefect": OWN, "mlflow": "http://127.0.0.1:5000"})
    text, known = page.read_text(), login(tmp_path)
    assert page.stat().st_mode & 0o777 == 0o600
    assert f"{OWN}/sdcore-login#{known.encoded}" in text
    assert f"http://sdcore:{known.key}@127.0.0.1:5000/sdcore-login" in text
    remove_page(tmp_path)
    assert not page.exists()
