from concurrent.futures import Future

from prefect.states import Completed, Failed

from flows.schedule import plan, run
from pipeline.core.stage import Stage

PARAMS = {"students": ["a", "b"]}
PREPARE = Stage(run="tests:prepare", summary="-")
DISTILL = Stage(run="tests:distill", summary="-", deps=(PREPARE,), matrix=("student",))
MEASURE = Stage(run="tests:measure", summary="-", deps=(DISTILL,), matrix=("student",), exclusive=True)
COMPARE = Stage(run="tests:compare", summary="-", deps=(MEASURE,))
STEPS = plan((PREPARE, DISTILL, MEASURE, COMPARE), PARAMS)


class Ended(Future):
    """A future of Prefect's that has ended."""

    def __init__(self, state):
        super().__init__()
        self.state = state
        self.set_result(None)

    def wait(self):
        pass


def ran(failing=(), refused=(), at_once=1):
    started = []

    def start(step):
        started.append(step.target)
        return Ended(
            Failed() if step.target in failing else Completed(name="Refused" if step.target in refused else None)
        )

    ended = {step.target: state and state.is_completed() for step, state in run(STEPS, at_once, start)}
    return started, ended


def test_a_step_comes_after_what_it_reads():
    started, ended = ran()
    assert started == ["prepare", "distill@a", "distill@b", "measure@a", "measure@b", "compare"]
    assert all(ended.values())


def test_an_exclusive_step_waits_for_all_before_it():
    after = {step.target: step.after for step in STEPS}
    assert after["measure@a"] == {"prepare", "distill@a", "distill@b"}
    assert after["measure@b"] == {"prepare", "distill@a", "distill@b", "measure@a"}


def test_what_reads_a_failed_step_is_not_started_and_the_rest_is():
    started, ended = ran(failing={"distill@a"}, at_once=2)
    assert "measure@a" not in started
    assert ended["measure@a"] is None
    assert {"measure@b", "compare"} <= set(started)


def test_a_step_without_any_of_its_inputs_is_not_started():
    started, ended = ran(failing={"prepare"})
    assert started == ["prepare"]
    assert ended["compare"] is None


def test_what_reads_a_refused_step_is_started_to_pass_the_refusal_on():
    started, ended = ran(refused={"distill@a"})
    assert "measure@a" in started
    assert all(ended.values())
