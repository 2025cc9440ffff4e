import json
import pickle
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import pipeline.embed
from pipeline.core import checkout, code
from pipeline.core.artifact import Card, Contents, digest
from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.core.tracking_uri import anchored
from pipeline.data import encoding, filling
from pipeline.data.embeddings import Embeddings
from pipeline.data.shards import MANIFEST, Shards
from pipeline.data.store import StoreFile, moments
from pipeline.embed import EmbedConfig, embed
from pipeline.models import build
from pipeline.models.feature_layers import captured_features
from pipeline.models.sam import Sam, save_checkpoint
from pipeline.models.students import module_of
from pipeline.ops.geometry import to_input
from pipeline.prepare import PrepareConfig, prepare
from pipeline.prepare.sources import Procedural

SIDE, GRID = 32, 4


class Encoder(nn.Module):
    """A simple linear encoder that counts its images and fails after ``fail_after`` of them."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))
        self.images = 0
        self.fail_after = None
        self.factor = 1.0

    def forward(self, images):
        if self.fail_after is not None and self.images >= self.fail_after:
            raise KeyboardInterrupt
        self.images += len(images)
        assert not torch.is_grad_enabled()
        small = nn.functional.avg_pool2d(images.mean(1, keepdim=True), SIDE // GRID)
        return self.weight * self.factor * small * torch.linspace(-1, 1, 256).view(1, 256, 1, 1)


class Teacher(Sam):
    input_size, embedding_size = SIDE, GRID

    def __init__(self):
        nn.Module.__init__(self)
        self.image_encoder = Encoder()
        self.mask_decoder = nn.Linear(2, 2)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepare")
    source = Procedural(kind="procedural", side_px=48, train=5, calibration=2, validation=1, seed=0, jpeg_quality=90)
    prepare(PrepareConfig(data=__file__, shard_images=2, source=source), out=out, log=silent)
    return out


@pytest.fixture
def sam(monkeypatch):
    module = Teacher()
    for reader in (pipeline.embed, filling):
        monkeypatch.setattr(reader, "load_checkpoint", lambda directory: module)
    return module


@pytest.fixture
def teacher(sam):
    """Its encoder."""
    return sam.image_encoder


@pytest.fixture
def run(tmp_path, dataset, teacher):
    """Run ``embed`` with the store in ``tmp_path``; gives the artifact's directory."""

    def run_embed(name="out", batch=2, weights=b"first", feature_layers=()):
        checkpoint = tmp_path / f"teacher-{weights.decode()}"
        checkpoint.mkdir(exist_ok=True)
        (checkpoint / "model.safetensors").write_bytes(weights)
        Card.seal(checkpoint, Contents(kind="checkpoint", model="bundled"), {})
        out = tmp_path / name
        out.mkdir()
        config = EmbedConfig(store=str(tmp_path / "store"), batch=batch, device="cpu", feature_layers=[*feature_layers])
        assert embed(config, prepare=dataset, teacher=checkpoint, out=out, log=silent).kind == "embeddings"
        return out

    return run_embed


def stored(tmp_path):
    return sorted((tmp_path / "store").rglob("*.safetensors"))


@pytest.mark.parametrize("batch", [1, 2, 3])
def test_each_embedding_is_the_encoders_answer_to_its_image(run, teacher, dataset, batch):
    embeddings = Embeddings(run(batch=batch))
    assert teacher.images == len(embeddings) == 7
    assert embeddings.embedding_size == GRID
    for split in ("train", "calibration"):
        for sample in Shards(dataset, split):
            with torch.inference_mode():
                expected = teacher(to_input(sample.image, SIDE)[None])[0].half()
            embedding = embeddings.get(sample.key)
            assert embedding.dtype == torch.float16
            assert embedding.shape == (256, GRID, GRID)
            torch.testing.assert_close(embedding, expected, rtol=0, atol=2e-3)
            assert embedding.abs().max() > 0.1


def test_metrics_are_those_of_all_values(run, dataset):
    out = run()
    embeddings = Embeddings(out)
    keys = Shards(dataset, "train").keys + Shards(dataset, "calibration").keys
    values = torch.stack([embeddings.get(key) for key in keys]).double()
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["images"] == 7
    assert metrics["embedding_mean"] == pytest.approx(values.mean().item(), abs=1e-9)
    assert metrics["embedding_std"] == pytest.approx(values.std(correction=0).item(), rel=1e-6)


def test_a_second_run_computes_nothing_and_says_the_same(run, teacher):
    first = run("one")
    teacher.images = 0
    second = run("two")
    assert teacher.images == 0
    assert digest(first) == digest(second)


def test_an_interrupted_run_goes_on_with_the_shards_that_are_missing(run, teacher, tmp_path):
    teacher.fail_after = 2
    with pytest.raises(KeyboardInterrupt):
        run("broken")
    assert len(stored(tmp_path)) == 1
    teacher.fail_after, teacher.images = None, 0
    resumed = run("resumed")
    assert teacher.images == 5
    assert not list((tmp_path / "store").rglob("*.part"))
    for path in stored(tmp_path):
        path.unlink()
    assert digest(run("anew")) == digest(resumed)


def cut(path):
    path.write_bytes(path.read_bytes()[:-7])


def flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [cut, flip, lambda path: path.unlink(), lambda path: path.with_suffix(".json").unlink(),
     lambda path: path.with_suffix(".json").write_text("{")],
    ids=["cut", "flipped", "gone", "seal gone", "seal damaged"],
)  # fmt: skip
def test_a_damaged_shard_alone_is_made_anew(run, teacher, tmp_path, spoil):
    first = run("one")
    spoil(stored(tmp_path)[0])
    images = {entry["file"]: len(entry["keys"]) for entry in json.loads((first / MANIFEST).read_text())["shards"]}
    name = stored(tmp_path)[0].relative_to(tmp_path / "store").as_posix() if stored(tmp_path) else None
    teacher.images = 0
    second = run("two")
    assert 1 <= teacher.images <= 2
    assert name in images
    assert digest(first) == digest(second)


def test_another_teacher_gets_shards_of_its_own(run, teacher, tmp_path):
    run("one")
    teacher.images = 0
    teacher.weight.data += 1
    run("two", weights=b"second")
    assert teacher.images == 7
    assert len(stored(tmp_path)) == 8


def test_a_teacher_whose_decoder_alone_is_another_keeps_its_embeddings(run, sam, teacher, tmp_path):
    first = run("one")
    teacher.images = 0
    sam.mask_decoder.weight.data += 1
    second = run("two", weights=b"second")
    assert teacher.images == 0
    assert Embeddings(second).shards == Embeddings(first).shards
    assert Embeddings(first).teacher != Embeddings(second).teacher


def decides():
    return set(code.closure(encoding.__name__, module_of("bundled"))) - encoding._ASSEMBLY


def test_only_encoder_and_preprocessing_decide_where_embeddings_lie():
    assert decides() == {
        f"pipeline/{name}.py"
        for name in (
            "data/encoding", "data/shards", "models/bundled", "models/feature_layers",
            "models/published", "ops/geometry",
        )
    }  # fmt: skip


def test_what_a_store_lacks_is_computed_anew_where_it_is_read(run, teacher, dataset, tmp_path, capsys):
    out = run()
    expected = {key: Embeddings(out).get(key) for key in Shards(dataset, "train").keys}
    # By name, not by the hash of their folder: the last one holds fewer images.
    gone, cut_short, *_ = sorted((p for p in stored(tmp_path) if "train" in p.name), key=lambda path: path.name)
    gone.unlink()
    cut(cut_short)
    teacher.images = 0
    arguments = {"prepare": dataset, "teacher": tmp_path / "teacher-first", "device": torch.device("cpu")}
    filling.refill(Embeddings(out), **arguments, batch=2)
    assert teacher.images == 4
    assert "2 of 4 files of the teacher's embeddings are not in" in capsys.readouterr().err
    assert all(torch.equal(Embeddings(out).get(key), value) for key, value in expected.items())
    filling.refill(Embeddings(out), **arguments, batch=2)
    assert teacher.images == 4


def test_a_store_is_not_refilled_from_other_data(run, teacher, tmp_path):
    out, other = run(), tmp_path / "other"
    other.mkdir()
    source = Procedural(kind="procedural", side_px=48, train=2, calibration=2, validation=1, seed=0, jpeg_quality=90)
    prepare(PrepareConfig(data=__file__, shard_images=2, source=source), out=other, log=silent)
    next(path for path in stored(tmp_path) if path.name == "train-00001.safetensors").unlink()
    with pytest.raises(InputError, match=r"train-00001.* is missing and cannot be recomputed: .*other, the teacher"):
        filling.refill(
            Embeddings(out), prepare=other, teacher=tmp_path / "teacher-first", batch=2, device=torch.device("cpu")
        )


def test_a_store_is_relative_to_its_root_else_to_the_main_checkout(tmp_path, monkeypatch):
    monkeypatch.delenv(checkout.STORE, raising=False)
    copy = tmp_path / ".dvc/tmp/exps/temp/abc"
    copy.mkdir(parents=True)
    for here in (copy, copy.parent, tmp_path):
        monkeypatch.chdir(here)
        assert checkout.main_checkout() == tmp_path
        assert checkout.store_path(".store/embeddings") == tmp_path / ".store/embeddings"
        assert anchored("sqlite:///mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    assert checkout.store_path("/elsewhere") == Path("/elsewhere")
    monkeypatch.setenv(checkout.STORE, "/scratch")
    assert checkout.store_path(".store/embeddings") == Path("/scratch/.store/embeddings")


def test_a_teacher_that_gives_no_finite_numbers_is_refused(run, teacher, tmp_path):
    teacher.factor = 1e9
    with pytest.raises(InputError, match="'train_0000000' on are not finite in half precision"):
        run()
    assert stored(tmp_path) == []


def test_a_store_that_cannot_be_written_is_named(run, tmp_path):
    (tmp_path / "store").write_text("a file in the way")
    with pytest.raises(InputError, match=r"cannot be written to .*store.* set embed\.store to another disk"):
        run()


def test_an_unknown_device_is_named(tmp_path, dataset, run, teacher):
    run()
    config = EmbedConfig(store="s", batch=1, device="abacus", feature_layers=[])
    with pytest.raises(InputError, match=r"embed\.device is 'abacus'"):
        embed(config, prepare=dataset, teacher=tmp_path / "teacher-first", out=tmp_path, log=silent)


def test_processes_share_the_shards_and_the_first_one_writes_the_manifest(run, teacher, tmp_path, monkeypatch):
    alone = run("alone")
    for path in stored(tmp_path):
        path.unlink()
    gathered = dict[str, object]()

    @dataclass(frozen=True)
    class Beside(Ranks):
        """One of two processes, of which the other one ran before."""

        def gather(self, own):
            gathered.update(own)
            return dict(gathered)

    for rank, images in ((1, 2), (0, 5)):
        monkeypatch.setattr(pipeline.embed, "joined", lambda device, rank=rank: nullcontext(Beside(rank, 2)))
        teacher.images = 0
        out = run(f"rank {rank}")
        assert teacher.images == images
        assert (out / MANIFEST).exists() == (rank == 0)
    assert digest(out) == digest(alone)


def test_a_files_rows_are_those_of_safetensors_whatever_the_batches(tmp_path):
    values = {"embeddings": torch.randn(5, 3, 2, 2).half(), "block_1": torch.randn(5, 7, 2, 2).half()}
    seals = []
    for name, batch in (("whole", 5), ("parts", 2)):
        target = StoreFile(tmp_path, f"{name}.safetensors")
        with target.rows(5) as rows:
            for start in range(0, 5, batch):
                part = {key: value[start : start + batch] for key, value in values.items()}
                rows.append(part, *moments(part["embeddings"]))
        seals.append(target.seal())
        found = load_file(target.path)
        assert found.keys() == values.keys()
        assert all(torch.equal(found[key], values[key]) for key in values)
    assert seals[0] == seals[1] == rows.seal


def test_a_file_that_lacks_images_is_not_sealed(tmp_path):
    target = StoreFile(tmp_path, "x.safetensors")
    values = torch.zeros(2, 3, 2, 2).half()
    with pytest.raises(ValueError, match="2 of 3 images were written"), target.rows(3) as rows:
        rows.append({"embeddings": values}, *moments(values))
    assert not [*tmp_path.iterdir()]


def test_embeddings_can_be_pickled_after_use(run):
    embeddings = Embeddings(run())
    value = embeddings.get("train_0000003")
    copy = pickle.loads(pickle.dumps(embeddings))
    assert torch.equal(copy.get("train_0000003"), value)


def test_embeddings_that_are_not_there_say_how_to_make_them(run, tmp_path):
    out = run()
    remedy = "dvc repro --force --single-item embed"
    with pytest.raises(InputError, match=f"no embedding of 'x'.*{remedy}"):
        Embeddings(out).get("x")
    cut(next(p for p in stored(tmp_path) if p.name == "train-00000.safetensors"))
    with pytest.raises(InputError, match=f"store .*no readable .*train-00000.* not .* bytes long.*{remedy}"):
        Embeddings(out).get("train_0000000")
    with pytest.raises(InputError, match=r"manifest\.json cannot be read"):
        Embeddings(tmp_path)


def test_features_of_blocks_are_stored_with_the_embeddings(dataset, tmp_path):
    teacher, out = tmp_path / "teacher", tmp_path / "out"
    teacher.mkdir()
    out.mkdir()
    sam = build("bundled", seed=1).eval()
    save_checkpoint(sam, teacher)
    Card.seal(teacher, Contents(kind="checkpoint", model="bundled"), {})
    config = EmbedConfig(store=str(tmp_path / "store"), batch=3, device="cpu", feature_layers=[4, 1])
    embed(config, prepare=dataset, teacher=teacher, out=out, log=silent)
    embeddings, sample = Embeddings(out), Shards(dataset, "train")[3]
    assert embeddings.feature_layers == [1, 4]
    with torch.inference_mode(), captured_features(sam.image_encoder, [1, 4]) as features:
        embedding = sam.image_encoder(to_input(sample.image, 256)[None])
    torch.testing.assert_close(embeddings.get(sample.key).float(), embedding[0], rtol=0, atol=5e-3)
    for layer in (1, 4):
        torch.testing.assert_close(
            embeddings.features(sample.key, layer).float(), features[layer][0], rtol=2e-3, atol=5e-3
        )
    with pytest.raises(InputError, match=r"blocks 1, 4, not of the teacher's block 2: add it to embed\.feature_layers"):
        embeddings.features(sample.key, 2)
