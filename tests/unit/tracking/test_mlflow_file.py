import sqlite3

import pytest
from filelock import Timeout
from mlflow.exceptions import MlflowException
from sqlalchemy.exc import OperationalError

from sdcore.errors import SdcoreError
from tasks.tracking.client import store_errors
from tasks.tracking.mlflow_file import explained, pragma


def test_a_database_that_is_none_is_named(tmp_path):
    (path := tmp_path / "mlflow.db").write_bytes(b"garbage" * 999)
    with pytest.raises(SdcoreError, match="not a database") as caught, explained(str(path)):
        pragma(path, "journal_mode = WAL")
    assert caught.value.where == str(path) and "sdcore doctor" in caught.value.fix


def test_tables_that_another_process_has_locked_are_named(tmp_path):
    cause = OperationalError("INSERT", {}, sqlite3.OperationalError("database is locked"))
    path = tmp_path / "mlflow.db"
    for error in (MlflowException(cause), cause, cause.orig, Timeout("mlflow.db.lock")):
        with pytest.raises(SdcoreError, match="cannot be used") as caught, store_errors(path):
            raise error
        assert caught.value.where == str(path) and "\n" not in caught.value.got
        assert "lock" in caught.value.got and "goes on" in caught.value.fix
    with pytest.raises(ZeroDivisionError), store_errors(path):  # a fault of ours stays one
        print(1 / 0)


def test_a_setting_that_mlflow_refuses_is_named(monkeypatch):
    from mlflow.environment_variables import MLFLOW_SQLALCHEMYSTORE_POOL_SIZE

    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "many")
    with pytest.raises(SdcoreError, match="many") as caught, explained("mlflow"):
        MLFLOW_SQLALCHEMYSTORE_POOL_SIZE.get()
    assert "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE" in caught.value.where
