import io
import os
import tarfile

import pytest

from pipeline.core.errors import InputError
from pipeline.core.untrusted.tar_file import parts


def written(path, members, format=tarfile.GNU_FORMAT):
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def header(name="a.jpg", size=b"00000000005\0", kind=b"0"):
    """A header block with any size field and a right checksum."""
    block = bytearray(tarfile.TarInfo(name).tobuf(tarfile.USTAR_FORMAT))
    block[124:136], block[156:157] = size, kind
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


NEGATIVE = b"\xff" * 10 + b"\xfe\x00"  # -512 to base 256
HUGE = b"\x80" + b"\0" * 4 + b"\x7f" * 7
HOSTILE = {
    "empty": b"",
    "text": b"no tar at all",
    "gzip": b"\x1f\x8b" + bytes(100),
    "negative size": header(size=NEGATIVE) * 3,
    "negative size of a long name": header(size=NEGATIVE, kind=b"L") + header(),
    "negative size of a pax header": header(size=NEGATIVE, kind=b"x") + header(),
    "huge size": header(size=HUGE) + bytes(1024),
    "huge long name": header(size=HUGE, kind=b"L") + bytes(1024),
    "huge pax header": header(size=HUGE, kind=b"x") + bytes(1024),
    "pax header of nonsense": header(size=b"00000000010\0", kind=b"x") + b"99999 a=".ljust(512, b"\0") + header(),
    "letters as size": header(size=b"abcdefghijk\0"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_tar_is_refused_in_one_line(tmp_path, case):
    path = tmp_path / "a.tar"
    path.write_bytes(HOSTILE[case])
    with pytest.raises(InputError, match=r"a\.tar is not a readable tar .*Get another") as refused:
        parts(path, (".jpg",), remedy="Get another.")
    assert "\n" not in str(refused.value)


def test_a_fifo_is_refused_instead_of_waited_for(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(InputError, match="FIFO"):
        parts(tmp_path / "a.tar", (".jpg",), remedy="Get another.")


def test_a_name_that_occurs_twice_is_refused(tmp_path):
    path = written(tmp_path / "a.tar", [("a/x.jpg", b"1"), ("b/x.jpg", b"2")])
    with pytest.raises(InputError, match=r"'x\.jpg' occurs twice"):
        parts(path, (".jpg",), remedy="Get another.")


@pytest.mark.parametrize("format", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_lie_where_they_are_said_to(tmp_path, format):
    names = ["../../x.jpg", f"{'d' * 90}/y.json", "/etc/z.txt"]
    path = written(tmp_path / "a.tar", [(name, name.encode()) for name in names], format)
    found = parts(path, (".jpg", ".json"), remedy="Get another.")
    assert found.keys() == {"x", "y"}
    for name in names[:2]:
        stem, suffix = name.rpartition("/")[2].split(".")
        offset, length = found[stem][f".{suffix}"]
        assert path.read_bytes()[offset : offset + length] == name.encode()
