import io
import time

from pipeline.core import progress as module
from pipeline.core.progress import counter, progress


def standard_error(monkeypatch):
    """Called in the test itself: pytest puts its own stream in place between fixtures and test."""
    text = io.StringIO()
    monkeypatch.setattr("sys.stderr", text)
    return text


def test_in_a_log_progress_is_lines_of_their_own(monkeypatch):
    stream = standard_error(monkeypatch)
    monkeypatch.setattr(module, "_LINE_EVERY_S", 0.01)
    for _ in progress(range(5), "learn", "step"):
        time.sleep(0.02)
    lines = stream.getvalue().splitlines()
    assert len(lines) >= 3
    assert all(line.startswith("learn: ") and "of 5 steps" in line for line in lines)
    assert "\r" not in stream.getvalue()


def test_short_work_leaves_no_line_in_a_log(monkeypatch):
    stream = standard_error(monkeypatch)
    assert list(progress(range(100), "learn", "step")) == list(range(100))
    assert stream.getvalue() == ""


def test_at_a_terminal_progress_is_a_bar(monkeypatch):
    stream = standard_error(monkeypatch)
    monkeypatch.setattr(stream, "isatty", lambda: True)
    with counter("copy", "byte", 10) as bar:
        bar.update(10)
    assert "copy: 100%" in stream.getvalue()
    assert "\r" in stream.getvalue()
