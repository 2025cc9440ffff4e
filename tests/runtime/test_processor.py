import ctypes
import os
import platform

import pytest
import torch

from pipeline.runtime import processor
from pipeline.runtime.processor import decode_by_parts, encode_by_parts, keep_pages

GRID = 4


def decoder(calls):
    """Answers with what it was asked, so that order can be seen."""

    def decode(embedding, coords, labels, masks):
        calls.append((len(coords), None if masks is None else len(masks)))
        answer = coords[:, 0, 0] + (0 if masks is None else masks[:, 0, 0, 0])
        return answer[:, None, None, None].expand(-1, 4, 4 * GRID, 4 * GRID), answer[:, None].expand(-1, 4)

    return decode


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("prompts", "parts"), [(0, []), (1, [1]), (2, [2]), (5, [2, 2, 1])])
def test_prompts_come_back_in_order_however_they_are_cut(monkeypatch, prompts, parts, masked):
    monkeypatch.setattr(processor, "CELLS_AT_ONCE", 2 * GRID**2)
    calls, coords = [], torch.arange(float(prompts))[:, None, None].expand(-1, 1, 2)
    masks = 10 * torch.arange(float(prompts))[:, None, None, None].expand(-1, 1, 4 * GRID, 4 * GRID) if masked else None
    embedding = torch.zeros(1, 256, GRID, GRID)
    logits, ious = decode_by_parts(decoder(calls), embedding, coords, torch.ones(prompts, 1), masks)
    assert calls == [(count, count if masked else None) for count in parts]
    assert logits.shape == (prompts, 4, 4 * GRID, 4 * GRID)
    assert ious.shape == (prompts, 4)
    assert ious[:, 0].tolist() == [(11.0 if masked else 1.0) * i for i in range(prompts)]


@pytest.mark.parametrize(
    ("limit", "images", "parts"), [(2, 0, [0]), (2, 1, [1]), (2, 2, [2]), (2, 5, [2, 2, 1]), (0, 2, [1, 1])]
)
def test_images_come_back_in_order_however_they_are_cut(monkeypatch, limit, images, parts):
    monkeypatch.setattr(processor, "PIXELS_AT_ONCE", limit * 8**2)
    calls = []

    def encode(part):
        calls.append(len(part))
        return part[:, :1, :1, :1].expand(-1, 256, GRID, GRID)

    pixels = torch.arange(float(images))[:, None, None, None].expand(-1, 3, 8, 8)
    embeddings = encode_by_parts(encode, pixels)
    assert calls == parts
    assert embeddings.shape == (images, 256, GRID, GRID)
    assert embeddings[:, 0, 0, 0].tolist() == list(range(images))


class Library:
    """A C library that grants limits up to a largest one, and remembers what it was asked."""

    def __init__(self, largest):
        self.largest, self.asked = largest, []

    def mallopt(self, which, value):
        self.asked.append((which, value >> 20))
        return int(which != -3 or value <= self.largest)


@pytest.mark.parametrize(
    ("libc", "largest", "environment", "asked"),
    [
        ("glibc", 1 << 40, {}, [(-3, 1024), (-1, 1024)]),
        ("glibc", 32 << 20, {}, [(-3, 1024), (-3, 32), (-1, 1024)]),  # before 2.35
        ("", 1 << 40, {}, []),
        ("glibc", 1 << 40, {"MALLOC_ARENA_MAX": "1"}, []),
    ],
)
def test_pages_are_kept_where_the_c_library_can_and_nobody_said_otherwise(
    monkeypatch, libc, largest, environment, asked
):
    library = Library(largest)
    monkeypatch.setattr(platform, "libc_ver", lambda: (libc, ""))
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library)
    for name in [name for name in os.environ if name.startswith("MALLOC_")]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    keep_pages()
    assert library.asked == asked
