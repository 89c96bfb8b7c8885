from sdcore import installed


def test_a_new_database_begins_as_the_one_made_at_install(tmp_path, monkeypatch):
    monkeypatch.setattr(installed, "FOLDER", tmp_path / "made")
    there = tmp_path / "mlflow.db"
    installed.begin(there, "empty.db")
    assert not there.exists()  # none was made: whoever opens the file makes its tables
    installed.FOLDER.mkdir()
    (installed.FOLDER / "empty.db").write_bytes(b"empty tables")
    installed.begin(there, "empty.db")
    assert there.read_bytes() == b"empty tables"
    there.write_bytes(b"full tables")
    installed.begin(there, "empty.db")
    assert there.read_bytes() == b"full tables"
    assert {path.name for path in tmp_path.iterdir()} == {"made", "mlflow.db"}  # no litter
