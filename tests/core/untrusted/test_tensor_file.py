import json
import os
import zipfile

import pytest
import torch
from safetensors.torch import save_file

from pipeline.core.errors import InputError
from pipeline.core.untrusted.tensor_file import read, safetensors

WEIGHT = torch.ones(2, 3)
STRANGE = {
    "nan": torch.tensor([1.0, float("nan")]),
    "inf": torch.tensor([1.0, float("inf")]),
    "nan in half precision": torch.tensor([1.0, float("nan")]).half(),
    "complex": torch.ones(2, dtype=torch.complex64),
    "sparse": torch.eye(3).to_sparse(),
    "compressed sparse rows": torch.eye(3).to_sparse_csr(),
    "meta": torch.ones(2, device="meta"),
    "quantized": torch.quantize_per_tensor(WEIGHT, 0.1, 0, torch.qint8),
    "nan in 8 bits": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn),
    "2^40 values of one": torch.ones(1).expand(1 << 20, 1 << 20),
}


def refused(path, call=read):
    with pytest.raises(InputError, match=path.name) as error:
        call(path, remedy="get another")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    return str(error.value)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", STRANGE)
def test_only_dense_finite_real_tensors_are_read(tmp_path, case):
    path = tmp_path / "a.pth"
    torch.save({"weight": WEIGHT, "strange": STRANGE[case]}, path)
    assert "strange" in refused(path) or "cannot be read as plain weights" in refused(path)


@pytest.mark.parametrize("case", ["nan", "inf", "nan in half precision", "complex", "nan in 8 bits"])
def test_only_finite_real_tensors_are_read_from_safetensors(tmp_path, case):
    path = tmp_path / "a.safetensors"
    save_file({"weight": WEIGHT, "strange": STRANGE[case]}, path)
    assert "strange" in refused(path)
    assert "strange" in refused(path, safetensors)


def header(content, data=b""):
    text = content if isinstance(content, bytes) else json.dumps(content).encode()
    return len(text).to_bytes(8, "little") + text + data


SPOILED = {
    "empty": b"",
    "text": b"no weights",
    "header that is cut": header({"a": 1})[:-3],
    "header of 2^60 bytes": (1 << 60).to_bytes(8, "little") + b"{}",
    "deep header": header(b'{"a":' * 10_000),
    "offsets beyond the end": header({"a": {"dtype": "F32", "shape": [1 << 40], "data_offsets": [0, 1 << 42]}}),
    "negative offsets": header({"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}),
    "shape of 2^64": header({"a": {"dtype": "F32", "shape": [1 << 32, 1 << 32], "data_offsets": [0, 0]}}),
    "unknown type": header({"a": {"dtype": "X1", "shape": [1], "data_offsets": [0, 1]}}, b"a"),
    "no tensors": header({}),
    "pickle protocol only": b"\x80\x02.",
}


@pytest.mark.parametrize("case", SPOILED)
def test_what_is_no_file_of_weights_is_refused_in_one_line(tmp_path, case):
    path = tmp_path / "a.pth"
    path.write_bytes(SPOILED[case])
    refused(path)


def test_a_zip_that_is_compressed_is_refused(tmp_path):
    plain, path = tmp_path / "plain.pth", tmp_path / "a.pth"
    torch.save({"a": torch.zeros(4 << 20)}, plain)
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert "is compressed" in refused(path)


@pytest.mark.parametrize("call", [read, safetensors])
def test_a_fifo_or_a_directory_is_refused_instead_of_waited_for(tmp_path, call):
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "folder").mkdir()
    assert "FIFO" in refused(tmp_path / "fifo", call)
    assert "directory" in refused(tmp_path / "folder", call)


def test_views_and_parameters_are_read(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    torch.save({"a": whole.T, "b": whole[1:], "c": torch.nn.Parameter(whole)}, tmp_path / "a.pth")
    state = read(tmp_path / "a.pth", remedy="get another")
    assert torch.equal(state["a"], whole.T)
    assert torch.equal(state["b"], whole[1:])
