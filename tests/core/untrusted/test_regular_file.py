import os
import socket

import pytest

from pipeline.core.errors import InputError
from pipeline.core.untrusted.regular_file import MissingFileError, opened, read_bytes, read_text


def fifo(path):
    os.mkfifo(path)


def bound_socket(path):
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind(str(path))


def loop(path):
    other = path.with_name("other")
    other.symlink_to(path)
    path.symlink_to(other)


def link_to_device(path):
    path.symlink_to("/dev/zero")


HOSTILE = {
    "directory": (lambda path: path.mkdir(), "Is a directory"),
    "fifo": (fifo, "Is a FIFO"),
    "link to a device": (link_to_device, "Is a device"),
    "link loop": (loop, "Too many levels of symbolic links"),
    "socket": (bound_socket, "cannot be read"),
    "too large": (lambda path: path.write_bytes(b"12345"), r"has 5 bytes, more than 4"),
    "not utf-8": (lambda path: path.write_bytes(b"a\xff"), r"not UTF-8 text \(byte 1\)"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_only_small_regular_text_files_are_read(tmp_path, monkeypatch, case):
    make, says = HOSTILE[case]
    monkeypatch.chdir(tmp_path)  # a socket's path has at most 107 characters
    path = type(tmp_path)("file")
    make(path)
    with pytest.raises(InputError, match=f"file .*{says}.*Put it right") as refused:
        read_text(path, 4, remedy="Put it right.")
    assert "\n" not in str(refused.value)


def test_a_missing_file_is_told_apart(tmp_path):
    with pytest.raises(MissingFileError, match="No such file"):
        read_bytes(tmp_path / "none", 4)


@pytest.mark.parametrize("name", ["a\0b", "a" * 300, "\ud800"])
def test_a_name_that_no_file_can_have(tmp_path, name):
    with pytest.raises(InputError):
        read_bytes(tmp_path / name, 4)


def test_a_link_to_a_file_is_followed(tmp_path):
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to("file")
    assert read_bytes(tmp_path / "link", 1) == b"x"


def test_a_fault_of_another_file_passes_through(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(FileNotFoundError), opened(tmp_path / "file"):
        (tmp_path / "none").read_bytes()
