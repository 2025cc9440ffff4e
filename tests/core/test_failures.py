import pytest

from pipeline.core import log_files
from pipeline.core.errors import GateError, InputError, Refused
from pipeline.core.failures import BAD_INPUT, FAULT, GATE, REFUSED, guarded


def _raising(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (InputError("two\nlines"), BAD_INPUT, "error: two lines hint\n"),
        (GateError("box_miou misses 0.9"), GATE, "error: box_miou misses 0.9\n"),
        (Refused("quantize.min_cosine", "too far"), REFUSED, "error: quantize.min_cosine: too far\n"),
        (KeyboardInterrupt(), 130, "error: distill@small was stopped. hint\n"),
        (
            ModuleNotFoundError("No module named 'mlflow'", name="mlflow.tracking"),
            BAD_INPUT,
            "mlflow is not installed.",
        ),
    ],
)
def test_a_failure_is_one_line_with_its_exit_code(capsys, error, code, says):
    assert guarded(_raising(error), "distill@small", lambda: " hint") == code
    err = capsys.readouterr().err
    assert says in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (
            ModuleNotFoundError("No module named 'pipeline.x'", name="pipeline.x"),
            "ModuleNotFoundError: No module named",
        ),
        (ZeroDivisionError(), "ZeroDivisionError. hint"),
        (RuntimeError("many\nlines " * 500), "RuntimeError: many lines many"),
    ],
)
def test_a_fault_of_the_program_is_one_line_that_names_the_file_of_its_traceback(
    error, says, capsys, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(log_files.DEBUG, raising=False)
    assert guarded(_raising(error), "the stage", lambda: " hint") == FAULT
    err = capsys.readouterr().err
    assert says in err
    assert err.endswith("Details: .logs/the-stage.log\n")
    assert err.count("\n") == 1
    assert len(err) < 700
    assert "Traceback (most recent call last)" in (tmp_path / ".logs/the-stage.log").read_text()
    monkeypatch.setenv(log_files.DEBUG, "1")
    with pytest.raises(type(error)):
        guarded(_raising(error), "the stage")


def test_where_the_checkout_cannot_be_written_the_log_is_in_the_temporary_directory(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(log_files.DEBUG, raising=False)
    (tmp_path / ".logs").touch()
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    assert guarded(_raising(ZeroDivisionError()), "x") == FAULT
    assert "Details: tmp/sam-distillery-logs/x.log" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("(sqlite3.DatabaseError) database disk image is malformed", "a SQLite database cannot be used: "),
        ("API request failed: HTTPConnectionPool(host='x'): Max retries exceeded", "a server cannot be reached: "),
    ],
)
def test_a_broken_database_and_a_server_that_went_away_are_no_faults_of_the_program(capsys, text, says):
    assert guarded(_raising(RuntimeError(text)), "x") == BAD_INPUT
    assert capsys.readouterr().err.startswith(f"error: {says}{text}. Check ")
