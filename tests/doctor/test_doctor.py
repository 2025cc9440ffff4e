import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline import doctor
from pipeline.core.errors import GateError, InputError
from pipeline.doctor import gpu, machine, packages, services
from pipeline.doctor.check import Check, output_of, run_all

ROOT = Path(__file__).parents[2]
H100 = "0, NVIDIA H100 80GB HBM3, 580.65.06, 81559, 81000, 9.0"


@pytest.fixture(autouse=True)
def _checkout(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "CUDA_VISIBLE_DEVICES", "SAM_DISTILLERY_STORE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("students: [a]\n")
    (tmp_path / ".dvc").mkdir()
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def nvidia_smi(tmp_path, monkeypatch):
    """Install a stand-in for the driver's program that prints these rows."""

    def install(*rows, status=0):
        folder = tmp_path / "bin"
        folder.mkdir(exist_ok=True)
        lines = "\n".join(rows)
        program = folder / "nvidia-smi"
        program.write_text(
            f'#!/bin/sh\nif [ -n "$1" ]; then echo "{lines}"; else echo "| CUDA Version: 13.0 |"; fi\nexit {status}\n'
        )
        program.chmod(0o755)
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    return install


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Install a package with this code in its ``__init__``."""

    def install(name, code):
        folder = tmp_path / "site"
        package = folder / name.replace("-", "_")
        package.mkdir(parents=True)
        (package / "__init__.py").write_text(code)
        information = folder / f"{name.replace('-', '_')}-1.2.dist-info"
        information.mkdir()
        (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.2\n")
        monkeypatch.setenv("PYTHONPATH", str(folder))
        monkeypatch.syspath_prepend(folder)

    return install


def one(checks):
    (check,) = checks
    return check


def test_a_report_has_a_line_for_every_check_and_a_remedy_for_every_problem(monkeypatch):
    monkeypatch.setattr(packages, "checks", lambda has_gpu: {})
    checks = doctor.examine()
    names = [check.name for check in checks]
    assert len(set(names)) == len(names)
    assert {"software", "processor", "cores", "threads", "memory", "disk", "gpu", "git", "params.yaml"} <= set(names)
    assert all(check.remedy for check in checks if check.status != "ok")
    text = doctor.doctor(as_json=False)
    assert len(text.splitlines()) == len(checks) + 1
    report = json.loads(doctor.doctor(as_json=True))
    assert [check["name"] for check in report["checks"]] == names
    assert report["faults"] == 0


def test_a_fault_prints_the_report_and_raises(monkeypatch, capsys):
    monkeypatch.setattr(doctor, "examine", lambda: [Check("git", "fault", "git is not installed", "install it")])
    with pytest.raises(GateError, match="1 fault: git"):
        doctor.doctor(as_json=False)
    assert capsys.readouterr().out.startswith("fault    git               git is not installed: install it\n1 fault")


def test_the_command_exits_with_1_on_a_fault(tmp_path):
    (tmp_path / "dvc.lock").write_text("stages: [\n")
    command = [sys.executable, "-m", "pipeline", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1
    assert done.stderr == "error: 1 fault: checkout.\n"
    report = {check["name"]: check for check in json.loads(done.stdout)["checks"]}
    assert report["checkout"]["status"] == "fault"
    assert "git checkout dvc.lock" in report["checkout"]["remedy"]
    assert report["torch"]["status"] == report["openvino"]["status"] == "ok"


def test_a_check_that_hangs_or_breaks_is_one_line():
    def broken():
        raise OSError("unplugged")

    began = time.monotonic()
    checks = run_all({
        "hangs": (lambda: time.sleep(60) or [], 0.2),
        "breaks": (broken, 5.0),
        "bad": (lambda: (_ for _ in ()).throw(InputError("x is y: do z.")), 5.0),
    })  # fmt: skip
    assert time.monotonic() - began < 5
    assert [(c.name, c.status) for c in checks] == [("hangs", "warning"), ("breaks", "warning"), ("bad", "fault")]
    assert checks[0].text == "did not answer within 0 s"
    assert "unplugged" in checks[1].text
    assert (checks[2].text, checks[2].remedy) == ("x is y", "do z.")


def test_a_program_that_does_not_end_is_stopped():
    with pytest.raises(InputError, match="did not end within"):
        output_of([sys.executable, "-c", "import time; time.sleep(60)"], 0.5)


def test_gpus_are_read_off_their_driver(nvidia_smi):
    nvidia_smi(H100, "1, NVIDIA H100 80GB HBM3, 580.65.06, 81559, 900, 9.0")
    first, second, driver = gpu.gpus()
    assert (first.name, first.status, first.values["memory_mib"]) == ("gpu 0", "ok", 81559)
    assert (second.name, second.status) == ("gpu 1", "warning")
    assert "CUDA_VISIBLE_DEVICES" in second.remedy
    assert (driver.status, driver.values) == ("ok", {"driver": "580.65.06", "cuda": "13.0"})


def test_old_drivers_and_gpus_are_faults(nvidia_smi):
    nvidia_smi("0, Tesla V100-SXM2-32GB, 535.104.05, 32768, 32000, 7.0")
    card, driver = gpu.gpus()
    assert (card.status, driver.status) == ("fault", "fault")
    assert "580" in driver.remedy


def test_a_driver_that_fails_is_a_fault(nvidia_smi):
    nvidia_smi("Failed to initialize NVML: Driver/library version mismatch", status=18)
    assert one(gpu.gpus()).status == "fault"
    assert "version mismatch" in one(gpu.gpus()).text


def test_hidden_gpus_are_a_warning(nvidia_smi, monkeypatch):
    nvidia_smi(H100)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert gpu.gpus()[-1].status == "warning"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ImportError('flash_attn_2_cuda.so: undefined symbol: _ZN3c10')", "undefined symbol"),
        ("__version__ = '4.0'", "cannot import name 'flash_attn_func'"),  # flash-attn-4 has the same folder
        ("import os; os.abort()", "ended with status"),
    ],
)
def test_a_broken_flash_attn_is_told_from_an_installed_one(installed, code, reason):
    installed("flash-attn", code)
    check = one(packages.checks(True)["flash-attn"][0]())
    assert check.status == "warning"
    assert "broken build" in check.text
    assert reason in check.text
    assert "uv pip uninstall flash-attn" in check.remedy


def test_a_working_flash_attn_is_imported(installed):
    installed("flash-attn", "__version__ = '2.8.3'\ndef flash_attn_func(q, k, v): return q\n")
    check = one(packages.checks(True)["flash-attn"][0]())
    assert (check.status, check.values["version"]) == ("ok", "2.8.3")


def test_what_only_gpus_use_is_missed_only_there():
    with_gpu, without = (packages.checks(has_gpu)["flash-attn"][0] for has_gpu in (True, False))
    assert one(without()).status == "ok"
    assert (one(with_gpu()).status, one(with_gpu()).remedy) == ("warning", "run `make setup-gpu`")


def test_a_required_library_that_cannot_be_imported_is_a_fault(installed):
    installed("openvino", "raise OSError('libopenvino.so: cannot open shared object file')")
    check = one(packages.checks(False)["openvino"][0]())
    assert check.status == "fault"
    assert "libopenvino.so" in check.text


def torch_finds(monkeypatch, **found):
    monkeypatch.setattr(packages, "probe", lambda code: {"version": "2.13.0", "cuda": "13.0", "cudnn": 9, **found})
    return one(packages.checks(True)["torch"][0]())


def test_a_torch_that_cannot_use_the_gpu_is_a_fault(monkeypatch):
    check = torch_finds(monkeypatch, available=False, reason="The NVIDIA driver on your system is too old")
    assert (check.status, "too old" in check.text) == ("fault", True)


@pytest.mark.parametrize(("capability", "status"), [([8, 6], "ok"), ([9, 0], "ok"), ([12, 1], "ok"), ([7, 0], "fault")])
def test_torch_needs_kernels_for_the_gpu(monkeypatch, capability, status):
    check = torch_finds(
        monkeypatch,
        available=True,
        architectures=["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"],
        devices=[{"name": "a GPU", "capability": capability}],
        product=True,
    )
    assert check.status == status


@pytest.mark.parametrize(
    ("variable", "value", "status"),
    [("OMP_NUM_THREADS", "4096", "warning"), ("OMP_NUM_THREADS", "many", "warning"), ("NOTHING", "1", "ok")],
)
def test_threads_are_compared_with_cores(monkeypatch, variable, value, status):
    for name in machine._THREADS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value)
    assert machine.cores()[1].status == status


def test_a_container_limits_memory_and_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text(f"{2 << 30}\n")
    (tmp_path / "memory.current").write_text(f"{1 << 30}\n")
    (tmp_path / "cpu.max").write_text("150000 100000\n")
    memory = machine.memory()[0]
    assert (memory.status, memory.values["total_bytes"]) == ("warning", 2 << 30)
    assert machine.cores()[0].values["quota"] == 1.5


def test_devices_that_are_not_here_are_a_warning(tmp_path):
    (tmp_path / "params.yaml").write_text("students: [a]\nembed: {device: cuda}\n")
    check = one(services.params())
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    assert check.status == "warning"
    assert "no GPU" in check.text


def remote(url):
    Path(".dvc/config").write_text(f"[core]\n    remote = shared\n['remote \"shared\"']\n    url = {url}\n")
    return one(services.dvc_remote())


def test_without_a_remote_nothing_is_wrong():
    assert one(services.dvc_remote()).status == "ok"


def test_a_remote_folder_must_exist(tmp_path):
    assert remote(tmp_path / "nowhere").status == "fault"
    (tmp_path / "remote").mkdir()
    assert remote(tmp_path / "remote").status == "ok"
    assert remote("../remote").status == "ok"  # relative to .dvc


def test_a_remote_that_does_not_answer_is_a_fault_within_its_time(monkeypatch):
    monkeypatch.setattr("pipeline.core.preflight.services.TIMEOUT_S", 0.5)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        began = time.monotonic()
        check = remote(f"http://me:secret@127.0.0.1:{server.getsockname()[1]}/data")
        assert time.monotonic() - began < 5
    assert check.status == "fault"
    assert "did not answer" in check.text
    assert "secret" not in str(check)


def test_a_remote_behind_ssh_is_asked_at_its_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        assert remote(f"ssh://127.0.0.1:{server.getsockname()[1]}/data").status == "ok"
