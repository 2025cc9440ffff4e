import pytest

from pipeline.core.errors import GateError, InputError, Refused
from pipeline.core.failures import BAD_INPUT, GATE, REFUSED, guarded


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


def test_a_fault_of_the_program_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError):
        guarded(_raising(ModuleNotFoundError("No module named 'pipeline.x'", name="pipeline.x")), "x")
    with pytest.raises(ZeroDivisionError):
        guarded(_raising(ZeroDivisionError()), "x")
