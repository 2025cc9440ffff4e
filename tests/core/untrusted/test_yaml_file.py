import time
from pathlib import Path

import pytest
import yaml

from pipeline.core.errors import InputError
from pipeline.core.untrusted.yaml_file import DEEPEST, load, parse

ROOT = Path(__file__).parents[3]
LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "3,000 nested lists": ("[" * 3000, "more than 32 levels deep"),
    "3,000 nested mappings": ("{a: " * 3000, "more than 32 levels deep"),
    "3,000 indented lists": ("- " * 3000, "more than 32 levels deep"),
    "just too deep": ("[" * (DEEPEST + 1) + "]" * (DEEPEST + 1), "more than 32 levels deep"),
    "integer of 5,000 digits": (f"a: {'1' * 5000}", "more than 100 digits"),
    "fraction of 5,000 digits": (f"a: 1.{'1' * 5000}", "more than 100 digits"),
    "integer of 70 bits": (f"a: {1 << 70}", "does not fit into 64 bits"),
    "20 MB of comment": ("#" + "x" * 20_000_000, "20,000,001 bytes, more than 1,000,000"),
    "too many values": ("- x\n" * 30_000, "more than 20000 values"),
    "duplicate keys": ("a: 1\nb: 2\na: 3", "line 3: the key 'a' occurs twice"),
    "duplicate keys below": ("a: {b: 1, b: 1}", "the key 'b' occurs twice"),
    ".inf": ("a: .inf", "not a finite number"),
    "-.Inf": ("a: -.Inf", "not a finite number"),
    ".nan": ("a: .nan", "not a finite number"),
    "a float beyond a double": ("a: 1.0e+999", "not a finite number"),
    "1:30": ("a: 1:30", "base 60"),
    "1:30.5": ("a: 1:30.5", "base 60"),
    "010": ("a: 010", "octal"),
    "date": ("a: 2026-01-01", "tag"),
    "key that is a number": ("1: a", "the key '1' is not text"),
    "key that is a boolean": ("on: a", "the key 'on' is not text"),
    "key that is a list": ("? [a]\n: b", "is not text"),
    "billion laughs": (LAUGHS, "more than 20000 values"),
    "alias around itself": ("a: &a [*a]", "in itself"),
    "merge of itself": ("a: &a\n  <<: *a", "in itself"),
    "merge of text": ("a:\n  <<: b", "expected a mapping"),
    "code": ("a: !!python/object/apply:os.system [true]", "tag"),
    "!!int of text": ("a: !!int x", "not valid YAML"),
    "!!int of nothing": ("a: !!int", "not valid YAML"),
    "!!float of text": ("a: !!float x", "not valid YAML"),
    "!!bool of text": ("a: !!bool x", "not valid YAML"),
    "!!timestamp of text": ("a: !!timestamp x", "tag"),
    "!!binary": ("a: !!binary x", "tag"),
    "!!set": ("a: !!set {b}", "tag"),
    "!!map of a list": ("a: !!map [b]", "not valid YAML"),
    "!!int of a list": ("a: !!int [b]", "not valid YAML"),
    "!!str of a list": ("a: !!str [b]", "not valid YAML"),
    "!!seq of text": ("a: !!seq b", "not valid YAML"),
    "two documents": ("a: 1\n---\na: 2", "not valid YAML"),
    "nul": ("a: \0", "not valid YAML"),
    "unknown alias": ("a: *b", "not valid YAML"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_yaml_is_refused_in_one_line_and_at_once(tmp_path, case):
    text, says = HOSTILE[case]
    path = tmp_path / "params.yaml"
    path.write_text(text)
    start = time.process_time()
    with pytest.raises(InputError, match=says) as refused:
        load(path, remedy="Write another.")
    assert time.process_time() - start < 10
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).endswith("Write another.")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 600


@pytest.mark.parametrize("path", [*ROOT.glob("presets/*.yaml"), *ROOT.glob("pipeline/**/*.yaml")], ids=lambda p: p.name)
def test_our_own_files_are_read_as_by_pyyaml(path):
    assert load(path) == yaml.safe_load(path.read_text())


def test_numbers_text_and_merges_are_read_as_by_pyyaml():
    text = 'a: &a {b: -1, c: 1.5e-3, d: "1:30", e: 0, f: 0x1f, g: 1_000, h: ~, i: yes}\nj: {<<: *a, b: 2}\nk: [*a, 0.0]'
    assert parse(text, "a") == yaml.safe_load(text)
    assert parse("", "a") is None
