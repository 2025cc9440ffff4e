"""The fenced blocks and inline commands of README, CONTRIBUTING and docs."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
LANGUAGES = {"sh", "python", "yaml", "json", "text"}

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)(?P<rest>[^\n]*)\n(?P<body>.*?)^(?P=indent)```$", re.MULTILINE | re.DOTALL
)
_INLINE = re.compile(r"`([^`\n]+(?:\n[^`\n]+)?)`")
_PLACEHOLDER = re.compile(r"^([A-Z]+|<.*>)$")
_ASSIGNMENT = re.compile(r"^[A-Z_]+=")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    title: str
    body: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


@dataclass(frozen=True)
class Command:
    """A command as words; ``inline`` ones may leave out required options."""

    where: str
    words: tuple[str, ...]
    inline: bool

    def __str__(self) -> str:
        return f"{self.where} {' '.join(self.words)}"


def blocks() -> list[Block]:
    """All fenced blocks."""
    found = []
    for page in PAGES:
        text = page.read_text()
        for match in _FENCE.finditer(text):
            body = re.sub(f"^{match['indent']}", "", match["body"], flags=re.MULTILINE)
            line = text[: match.start()].count("\n") + 1
            title = re.search(r'title="([^"]+)"', match["rest"])
            name = page.relative_to(ROOT).as_posix()
            found.append(Block(name, line, match["language"], title[1] if title else "", body))
    return found


def commands() -> list[Command]:
    """All commands of ``sh`` blocks, and those that are shown inline."""
    found = []
    for block in blocks():
        if block.language == "sh":
            lines = block.body.replace("\\\n", " ").splitlines()
            found += [Command(str(block), words, False) for line in lines if (words := split(line))]
    for page in PAGES:
        text = _FENCE.sub("", page.read_text())
        for code in _INLINE.findall(text):
            words = split(" ".join(code.split())) if "..." not in code else ()
            if any(_PLACEHOLDER.match(word) for word in words):
                continue
            if words and (words[:2] == ("python", "-m") or (words[0] in ("make", "dvc", "torchrun") and words[1:])):
                found.append(Command(page.relative_to(ROOT).as_posix(), words, True))
    return found


def split(line: str) -> tuple[str, ...]:
    """Words of a shell line without comments and leading assignments of variables."""
    try:
        words = shlex.split(line, comments=True)
    except ValueError:
        return ()
    while words and _ASSIGNMENT.match(words[0]):
        words.pop(0)
    return tuple(words)
