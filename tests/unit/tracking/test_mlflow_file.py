import pytest

from sdcore.errors import SdcoreError
from tasks.tracking.mlflow_file import explained, pragma


def test_a_database_that_is_none_is_named(tmp_path):
    (path := tmp_path / "mlflow.db").write_bytes(b"garbage" * 999)
    with pytest.raises(SdcoreError, match="not a database") as caught, explained(str(path)):
        pragma(path, "journal_mode = WAL")
    assert caught.value.where == str(path) and "sdcore doctor" in caught.value.fix


def test_a_setting_that_mlflow_refuses_is_named(monkeypatch):
    from mlflow.environment_variables import MLFLOW_SQLALCHEMYSTORE_POOL_SIZE

    monkeypatch.setenv("MLFLOW_SQLALCHEMYSTORE_POOL_SIZE", "many")
    with pytest.raises(SdcoreError, match="many") as caught, explained("mlflow"):
        MLFLOW_SQLALCHEMYSTORE_POOL_SIZE.get()
    assert "MLFLOW_SQLALCHEMYSTORE_POOL_SIZE" in caught.value.where
