"""PostgreSQL and an S3 API on loopback, for as long as a block runs."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import psycopg
import pytest
from moto.server import ThreadedMotoServer

from sdcore.system.ports import free_port

PASSWORD = "s3cret-of-PostgreSQL"
BUCKET = "sdcore"
_SECONDS = 120


@contextmanager
def postgresql(*databases: str) -> Iterator[str]:
    """Start PostgreSQL with these databases; give the address of their server, with its login.

    Skips the test where no PostgreSQL is found. It refuses to run as root: then it runs as the
    system's user `postgres`.
    """
    programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not programs and not shutil.which("initdb"):
        pytest.skip("no PostgreSQL is installed")
    programs = programs or [Path(shutil.which("initdb")).parent]
    owner = _owner()
    port, folder = free_port(), Path(tempfile.mkdtemp(prefix="sdcore-postgresql-"))
    try:
        secret = folder / "password"
        secret.write_text(PASSWORD)
        for path in (folder, secret) if owner else ():
            shutil.chown(path, *owner)
        by = {"user": owner[0], "group": owner[1], "extra_groups": []} if owner else {}
        data = folder / "data"
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL, "cwd": folder} | by
        login = ["--username=ada", "--auth=scram-sha-256", f"--pwfile={secret}", "--no-sync"]
        subprocess.run([programs[-1] / "initdb", data, *login], check=True, **quiet)
        options = ["-D", data, "-p", str(port), "-k", folder, "-h", "127.0.0.1", "-F"]
        with subprocess.Popen([programs[-1] / "postgres", *options], **quiet) as process:
            try:
                address = f"postgresql://ada:{PASSWORD}@127.0.0.1:{port}"
                _make(address, databases)
                yield address
            finally:
                process.send_signal(signal.SIGINT)  # SIGTERM waits for every client to leave
    finally:
        shutil.rmtree(folder)


@contextmanager
def object_store() -> Iterator[dict[str, str]]:
    """Start an S3 API with the bucket `BUCKET`; give the environment of its clients."""
    port = free_port()
    server = ThreadedMotoServer("127.0.0.1", port, verbose=False)
    server.start()
    environment = {
        "AWS_ACCESS_KEY_ID": "sdcore",
        "AWS_SECRET_ACCESS_KEY": "s3cret-of-the-bucket",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{port}",
        "MLFLOW_S3_ENDPOINT_URL": f"http://127.0.0.1:{port}",
    }
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, value in environment.items():
                patch.setenv(name, value)
            boto3.client("s3").create_bucket(Bucket=BUCKET)
            yield environment
    finally:
        server.stop()


def stored() -> dict[str, bytes]:
    """Every object of the bucket; inside `object_store`."""
    bucket = boto3.resource("s3").Bucket(BUCKET)
    return {each.key: each.get()["Body"].read() for each in bucket.objects.all()}


def dumped(address: str) -> str:
    """All that a database holds, as SQL."""
    dump = subprocess.run(["pg_dump", address], check=True, capture_output=True, text=True)
    return dump.stdout


def _owner() -> tuple[int, int] | None:
    if os.getuid():
        return None
    try:
        account = pwd.getpwnam("postgres")
    except KeyError:
        pytest.skip("PostgreSQL does not run as root, and there is no user postgres")
    return account.pw_uid, account.pw_gid


def _make(address: str, databases: tuple[str, ...]) -> None:
    patience = time.monotonic() + _SECONDS
    while True:
        try:
            with psycopg.connect(f"{address}/postgres", autocommit=True) as connection:
                for name in databases:
                    connection.execute(f"CREATE DATABASE {name}")
                return
        except psycopg.OperationalError:
            assert time.monotonic() < patience
            time.sleep(0.1)
