import subprocess

import pytest

from pipeline.core.provenance import Commit, commit


@pytest.fixture
def git(tmp_path, monkeypatch):
    """Git's commands in a fresh repository with code in it, where we work."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        identity = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]
        done = subprocess.run(["git", *identity, *arguments], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    run("init", "--quiet")
    (tmp_path / "pipeline").mkdir()
    (tmp_path / "pipeline" / "code.py").write_text("1")
    run("add", "--all")
    run("commit", "--quiet", "--message", "code")
    return run


def test_a_commit_of_results_does_not_change_the_commit_of_the_code(git, tmp_path):
    head = git("rev-parse", "HEAD")
    (tmp_path / "dvc.lock").write_text("results")
    assert commit() == Commit(head, changed=False)
    git("add", "--all")
    git("commit", "--quiet", "--message", "results")
    assert commit() == Commit(head, changed=False)


def test_code_that_is_not_committed_is_said(git, tmp_path):
    (tmp_path / "pipeline" / "code.py").write_text("2")
    assert commit() == Commit(git("rev-parse", "HEAD"), changed=True)


def test_outside_a_repository_there_is_no_commit(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit() == Commit("", changed=False)
