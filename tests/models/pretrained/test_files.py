import functools
import http.server
import pickle
import threading
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.artifact import file_sha256
from pipeline.core.errors import InputError
from pipeline.models.pretrained.files import fetch, read

STATE = {"image_encoder.weight": torch.arange(6.0).reshape(2, 3)}


@pytest.fixture
def pth(tmp_path):
    path = tmp_path / "served" / "sam.pth"
    path.parent.mkdir()
    torch.save(STATE, path)
    return path


class Handler(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; those below /short/ lack their last bytes, whatever the header promises."""

    requests = 0

    def do_GET(self):
        type(self).requests += 1
        if self.path.startswith("/short/"):
            data = (Path(self.directory) / Path(self.path).name).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[:-100])
        else:
            super().do_GET()

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(pth):
    Handler.requests = 0
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=pth.parent)) as served:
        threading.Thread(target=served.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{served.server_address[1]}"
        served.shutdown()


def test_a_file_of_the_pinned_hash_is_taken_where_it_lies_in_either_case(pth, tmp_path):
    assert fetch(str(pth), file_sha256(pth), tmp_path / "store", "teacher") == pth
    assert fetch(str(pth), file_sha256(pth).upper(), tmp_path / "store", "teacher") == pth
    assert not (tmp_path / "store").exists()


def test_a_url_is_downloaded_once(pth, server, tmp_path):
    store = tmp_path / "store"
    for _ in range(2):
        path = fetch(f"{server}/sam.pth", file_sha256(pth), store, "teacher")
        assert path.read_bytes() == pth.read_bytes()
    assert Handler.requests == 1
    assert list(store.iterdir()) == [path]


@pytest.mark.parametrize(
    ("url_path", "message"),
    [
        ("/none.pth", "404"),
        ("/short/sam.pth", r"cut short after \d+ of \d+ bytes"),
        ("/a file.pth", "cannot be downloaded"),
    ],
)
def test_a_download_that_fails_is_one_line_with_a_remedy_and_leaves_nothing(pth, server, tmp_path, url_path, message):
    with pytest.raises(InputError, match=rf"{server}.*{message}.*try again, or give a local path") as caught:
        fetch(server + url_path, file_sha256(pth), tmp_path / "store", "teacher")
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "store").iterdir()) == []


def test_a_server_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"http://127\.0\.0\.1:1/sam\.pth cannot be downloaded"):
        fetch("http://127.0.0.1:1/sam.pth", "0" * 64, tmp_path, "teacher")


def test_a_download_of_another_hash_is_not_kept(server, tmp_path):
    with pytest.raises(InputError, match=rf"{server}/sam\.pth has sha256 [0-9a-f]{{64}}, but .* pins 0000"):
        fetch(f"{server}/sam.pth", "0" * 64, tmp_path / "store", "teacher")
    assert list((tmp_path / "store").iterdir()) == []


def test_an_interrupted_download_leaves_nothing(pth, server, tmp_path, monkeypatch):
    def stop(*arguments, **settings):
        raise KeyboardInterrupt

    monkeypatch.setattr("pipeline.core.atomic.os.replace", stop)
    with pytest.raises(KeyboardInterrupt):
        fetch(f"{server}/sam.pth", file_sha256(pth), tmp_path / "store", "teacher")
    assert list((tmp_path / "store").iterdir()) == []


@pytest.mark.parametrize("store", ["store", "served"])
def test_a_local_file_of_another_hash_is_refused_and_stays_even_in_the_store(pth, tmp_path, store):
    with pytest.raises(InputError, match=r"sam\.pth has sha256 .* get the right file, or pin the hash you trust"):
        fetch(str(pth), "0" * 64, tmp_path / store, "teacher")
    assert pth.exists()


@pytest.mark.parametrize("source", ["nowhere.pth", "file:///etc/hostname", "ftp://127.0.0.1/sam.pth", "."])
def test_what_is_neither_file_nor_web_address_is_refused(source, tmp_path):
    with pytest.raises(InputError, match=r"does not exist: correct `teacher\.checkpoint`"):
        fetch(source, "0" * 64, tmp_path, "teacher")


@pytest.mark.parametrize("wrap", [lambda s: s, lambda s: {"model": s}, lambda s: {"state_dict": s, "epoch": 3}])
def test_weights_are_found_in_every_published_wrapping(tmp_path, wrap):
    torch.save(wrap(STATE), tmp_path / "x.pth")
    assert torch.equal(read(tmp_path / "x.pth")["image_encoder.weight"], STATE["image_encoder.weight"])


class Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", [torch.save, lambda value, path: path.write_bytes(pickle.dumps(value))])
def test_a_file_that_would_run_code_is_refused_without_running_it(tmp_path, save):
    save({"weight": Trap(tmp_path / "ran")}, tmp_path / "trap.pth")
    with pytest.raises(InputError, match=r"trap\.pth cannot be read as plain weights .*get the official file"):
        read(tmp_path / "trap.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("value", [[1, 2], {"epoch": 3}, torch.ones(2)])
def test_a_file_without_weights_is_refused(tmp_path, value):
    torch.save(value, tmp_path / "x.pth")
    with pytest.raises(InputError, match=r"x\.pth holds no state dict"):
        read(tmp_path / "x.pth")


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_bytes_give_a_refusal_and_never_another_error(tmp_path_factory, data):
    path = tmp_path_factory.getbasetemp() / "damaged.pth"
    torch.save(STATE, path)
    whole = path.read_bytes()
    cut = data.draw(st.integers(0, len(whole) - 1))
    path.write_bytes(data.draw(st.sampled_from([whole[:cut], whole[cut:], data.draw(st.binary(max_size=60))])))
    refusal = None
    try:
        assert isinstance(read(path), dict)
    except InputError as error:
        refusal = str(error)
    assert refusal is None or ("damaged.pth" in refusal and "\n" not in refusal)
