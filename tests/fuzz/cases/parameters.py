"""params.yaml: damaged as text, and as a value."""

from pathlib import Path

import yaml
from numpy.random import Generator

from pipeline.core import params
from pipeline.core.config import read_params
from pipeline.stages import STAGES
from tests.fuzz.mutation import Case, damage, mutate, pick, written

_PRESET = Path("presets/demo_from_scratch.yaml").read_text(encoding="utf-8")
_TOKENS = (
    "[", "]", "{", "}", ":", ": ", "- ", "&a ", "*a", "!!int ", "!!map ", "!x ", "|", "> ", "'", '"', "#",
    "%YAML 1.2\n", "---", "...", "? ", "\t", "\n", "<<: *a", " .inf", " 1:30", " 0x", "\0", "\x85", "\ufeff", "~",
    "1_000", "=", "!!set", "é", "`", "@", ",", " 1e400", " -", "\u2028", "2026-01-01",
)  # fmt: skip
_INVALID = (
    "seed: 1\nseed: 1\n", "extra: .inf\n", "extra: 1:30\n", "extra: 010\n", "extra: 2026-01-01\n", "1: 2\n",
    "a: &a [*a]\n", "- 1\n", "a: " + "9" * 5000 + "\n", "a: " + "[" * 3000 + "]" * 3000, "#" * 1_000_001,
    "extra: !!python/object/apply:os.getcwd []\n",
)  # fmt: skip


def texts(rng: Generator) -> Case:
    """The demo's preset with tokens of YAML inserted, and parts removed or repeated."""
    if rng.random() < 0.2:
        raw = pick(rng, _INVALID).encode()
        return Case(lambda folder: _read(written(folder, "p.yaml", raw)), invalid=True)
    text = _PRESET
    for _ in range(pick(rng, (1, 1, 2, 5))):
        i, action = int(rng.integers(len(text))), rng.random()
        if action < 0.7:
            text = text[:i] + pick(rng, _TOKENS) * pick(rng, (1, 1, 1, 2, 40)) + text[i:]
        elif action < 0.8:
            text = text[:i] + text[i + int(rng.integers(60)) :]
        else:
            lines = text.split("\n")
            lines.insert(int(rng.integers(len(lines))), pick(rng, lines))
            text = "\n".join(lines)
    raw = damage(rng, text.encode()) if rng.random() < 0.1 else text.encode()
    return Case(lambda folder: _read(written(folder, "p.yaml", raw)))


def values(rng: Generator) -> Case:
    """The demo's preset with values replaced."""
    value = mutate(rng, yaml.safe_load(_PRESET))
    try:
        raw = yaml.safe_dump(value, allow_unicode=True).encode()
    except (yaml.YAMLError, ValueError, RecursionError):  # surrogates, integers of more than 4,300 digits
        raw = b"\xff"
    return Case(lambda folder: _read(written(folder, "p.yaml", raw)))


def _read(path: Path) -> None:
    value = read_params(path)
    sections = params.sections(STAGES)
    params.check(sections, value)
    resolved = params.resolve(sections, value)
    params.as_json(resolved)
    params.as_text(resolved)
