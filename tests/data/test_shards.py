import json
import pickle
import tarfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError

from pipeline.core.artifact import write_json
from pipeline.core.errors import InputError
from pipeline.data.photograph import encode_jpeg
from pipeline.data.shards import MANIFEST, Entry, Manifest, Packed, Shards, write_split
from pipeline.ops.geometry import normalised, padded, resize_image, to_input


def packed(key, height=8, width=12, shade=0, annotations=()):
    pixels = np.full((height, width, 3), shade, dtype=np.uint8)
    record = {"image": {"image_id": 1, "height": height, "width": width}, "annotations": list(annotations)}
    return Packed(key, encode_jpeg(Image.fromarray(pixels), 95), record)


def dataset(directory, samples, shard_images=3):
    shards = write_split(directory, "train", iter(samples), shard_images)
    write_json(directory / MANIFEST, Manifest(splits={"train": shards}).model_dump())
    return shards


@settings(max_examples=25, deadline=None)
@given(
    shades=st.lists(st.integers(0, 255), max_size=9),
    sides=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    shard_images=st.integers(1, 5),
)
def test_any_samples_come_back_in_any_order(tmp_path_factory, shades, sides, shard_images):
    directory = tmp_path_factory.mktemp("shards")
    samples = [packed(f"k{i}", *sides, shade, [{"id": i}]) for i, shade in enumerate(shades)]
    written = dataset(directory, samples, shard_images)
    shards = Shards(directory, "train")
    assert len(shards) == len(shades) == sum(len(shard.samples) for shard in written)
    assert all(len(shard.samples) == shard_images for shard in written[:-1])
    assert shards.keys == [sample.key for sample in samples]
    assert shards.sizes == [sides] * len(shades)
    for i in reversed(range(len(shades))):
        assert shards[i].key == f"k{i}"
        assert shards[i].image.shape == (*sides, 3)
        assert abs(int(shards[i].image[0, 0, 0]) - shades[i]) <= 2
        assert shards[i].annotations == [{"id": i}]


def test_a_shard_is_a_plain_tar_that_tells_nothing_of_its_maker(tmp_path):
    sample = packed("only", annotations=[{"id": 4}])
    dataset(tmp_path, [sample])
    with tarfile.open(tmp_path / "train/00000.tar") as tar:
        assert tar.getnames() == ["only.jpg", "only.json"]
        assert {(m.mtime, m.uid, m.gid, m.uname, m.gname) for m in tar} == {(0, 0, 0, "", "")}
        assert tar.extractfile("only.jpg").read() == sample.jpeg
        assert json.load(tar.extractfile("only.json")) == sample.record


def test_shards_can_be_pickled(tmp_path):
    dataset(tmp_path, [packed("a"), packed("b", shade=200)])
    shards = Shards(tmp_path, "train")
    copy = pickle.loads(pickle.dumps(shards))
    assert copy.keys == shards.keys
    assert (copy[1].image == shards[1].image).all()


def test_an_unknown_split_lists_those_there_are(tmp_path):
    dataset(tmp_path, [packed("a")])
    with pytest.raises(InputError, match=r"no split 'test'.*train"):
        Shards(tmp_path, "test")


def test_a_shard_cut_short_is_found_before_it_is_read(tmp_path):
    dataset(tmp_path, [packed("a")])
    path = tmp_path / "train/00000.tar"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"00000\.tar is missing or not .* bytes long"):
        Shards(tmp_path, "train")


def test_a_changed_byte_is_found_by_verify_and_named_when_it_hits_a_record(tmp_path):
    shard = dataset(tmp_path, [packed("a")])[0]
    path = tmp_path / shard.file
    data = bytearray(path.read_bytes())
    data[shard.samples[0].json_offset] = ord("!")
    path.write_bytes(data)
    shards = Shards(tmp_path, "train")
    with pytest.raises(InputError, match="has changed since it was prepared"):
        shards.verify()
    with pytest.raises(InputError, match=r"00000\.tar is damaged at sample 'a'"):
        shards[0]


@pytest.mark.parametrize("text", [None, "{", '{"splits": 3}'])
def test_a_missing_or_damaged_manifest_says_how_to_make_it_anew(tmp_path, text):
    if text is not None:
        (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match=r"manifest\.json .*dvc repro"):
        Shards(tmp_path, "train")


def test_writing_twice_gives_the_same_bytes(tmp_path):
    samples = [packed(f"k{i}", shade=i) for i in range(4)]
    first, second = (dataset(tmp_path / name, samples) for name in ("one", "two"))
    assert first == second
    assert len({shard.sha256 for shard in first}) == 2


@pytest.mark.parametrize("field", ["image_offset", "image_bytes", "json_offset", "json_bytes"])
@pytest.mark.parametrize("value", [-1, 1 << 63, 10**30, float("inf"), "x"])
def test_an_entry_out_of_bounds_is_refused_before_anything_is_read(field, value):
    entry = {"key": "a", "height": 1, "width": 1, "instances": 0}
    entry |= {"image_offset": 0, "image_bytes": 1, "json_offset": 1, "json_bytes": 1}
    Entry.model_validate(entry)
    with pytest.raises(ValidationError):
        Entry.model_validate(entry | {field: value})


def photograph_like(size, seed=0):
    """Edges, gradients and texture."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 255, (size[0] // 16, size[1] // 16, 3), np.uint8)
    large = Image.fromarray(small).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(large) + rng.normal(0, 4, (*size, 3)), 0, 255).astype(np.uint8)


@pytest.mark.parametrize(("size", "reduced"), [((200, 300), True), ((301, 203), True), ((100, 130), False)])
def test_an_image_is_decoded_at_a_reduced_scale_close_to_the_resized_whole(tmp_path, size, reduced):
    jpeg = encode_jpeg(Image.fromarray(photograph_like(size)), 92)
    record = {"image": {"image_id": 1, "height": size[0], "width": size[1]}, "annotations": []}
    dataset(tmp_path, [Packed("a", jpeg, record)])
    shards = Shards(tmp_path, "train")
    found, expected = shards.resized(0, 96, annotated=False), resize_image(shards[0].image, 96)
    assert found.size == size
    assert found.pixels.shape == expected.shape
    error = found.pixels.astype(int) - expected
    assert (np.abs(error).max() > 0) == reduced
    assert np.sqrt((error**2).mean()) < 3
    assert abs(error.mean()) < 0.1


def test_images_in_bytes_are_finished_on_the_device_as_the_encoders_input():
    images = [photograph_like(size) for size in ((40, 64), (64, 20), (64, 64))]
    pixels = torch.from_numpy(np.stack([padded(image, 64) for image in images]))
    sizes = torch.tensor([image.shape[:2] for image in images])
    found = normalised(pixels, sizes)
    assert found.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(found, torch.stack([to_input(image, 64) for image in images]))
