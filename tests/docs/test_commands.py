"""What README and docs show works: commands parse, snippets run, sections of parameters are valid."""

import re
import shutil
import sys
import types
from typing import Any

import pytest
import typer
import yaml
from typer.core import TyperGroup
from typer.exceptions import TyperException
from typer.testing import CliRunner

from flows import release, worker
from pipeline.cli import app
from pipeline.core.artifact import Card
from pipeline.core.config import PARAMS, read_params, section
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.core.presets import activate
from pipeline.ops.gate import PromoteConfig
from pipeline.stages import STAGES
from pipeline.teacher import TeacherConfig, teacher
from tests.docs.pages import LANGUAGES, PAGES, ROOT, Block, Command, blocks, commands

BLOCKS, COMMANDS = blocks(), commands()
APPS = {"pipeline": app, "flows.release": release.app, "flows.worker": worker.app}
OTHER_MODULES = {"flows.promote", "pytest", "tests.chaos", "tests.compare.fabricated"}
OTHER_PROGRAMS = {
    "source",
    "export",
    "git",
    "chromium",
    "mlflow",
    "prefect",
    "sha256sum",
    "uv",
    "cd",
    "apt-get",
    "dpkg-deb",
    "taskset",
}
"""Programs of others: nothing here can parse their arguments."""
PRESET_NAMES = sorted(path.stem for path in (ROOT / "presets").glob("*.yaml"))
CHANGE = re.compile(r"(?<![\w.])((?:[a-z][a-z0-9_]*\.)+[a-z][a-z0-9_]*=[\w/][\w./]*)")
"""A value as help, messages and comments write it: ``section.key=value``."""


def of_language(language: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == language]


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A folder with the presets, in which the demo is active."""
    shutil.copytree(ROOT / "presets", tmp_path / "presets")
    monkeypatch.chdir(tmp_path)
    activate("demo")
    return tmp_path


def test_every_block_says_its_language():
    assert not [str(block) for block in BLOCKS if block.language not in LANGUAGES]


PATH = re.compile(r"`((?:pipeline|flows|tests|presets|docs|deps)/[\w./-]*\w(?:\.\w+)?/?)`")


@pytest.mark.parametrize("page", [page for page in PAGES if page.name != "log.md"], ids=lambda page: page.name)
def test_every_path_that_a_page_names_exists(page):
    written = {block.title for block in BLOCKS}
    named = {path for path in PATH.findall(page.read_text()) if "NAME" not in path} - written
    assert not [path for path in named if not (ROOT / path).exists()]


def test_the_readme_and_the_benchmarks_are_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 90
    assert len((ROOT / "docs/benchmarks.md").read_text().splitlines()) <= 240


def parse(root: Any, words: list[str], inline: bool) -> None:
    """Parse a command line, group by group, without running it; typer brings a click of its own."""
    command, context, rest = root, None, list(words)
    while True:
        try:
            context = command.make_context(command.name, rest, parent=context)
        except typer.Exit:  # --help, --version
            return
        except TyperException as error:
            if inline and type(error).__name__ in ("MissingParameter", "NoArgsIsHelpError"):
                return
            raise
        if not isinstance(command, TyperGroup):
            return
        _, command, rest = command.resolve_command(context, [*context._protected_args, *context.args])


def our_words(words: tuple[str, ...]) -> tuple[str, list[str]] | None:
    """The module and the arguments of a command of ours."""
    if words[0] == "sam-distillery":
        return "pipeline", list(words[1:])
    if "-m" in words and words[0] in ("python", "torchrun"):
        module, *rest = words[words.index("-m") + 1 :]
        if module == "torch.distributed.run":
            return our_words(("torchrun", *rest))
        return module, rest
    return None


@pytest.mark.parametrize("command", COMMANDS, ids=str)
def test_every_command_can_be_typed(command: Command, checkout):
    program, ours = command.words[0], our_words(command.words)
    if ours:
        module, rest = ours
        if module in APPS:
            parse(typer.main.get_command(APPS[module]), rest, command.inline)
        else:
            assert module in OTHER_MODULES
    elif program == "make":
        targets = [word for word in command.words[1:] if "=" not in word]
        known = set(re.findall(r"^([a-z.-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        assert targets
        assert set(targets) <= known
    elif program == "dvc":
        of_dvc(command.words[1:])
    else:
        assert program in OTHER_PROGRAMS


def of_dvc(words: tuple[str, ...]) -> None:
    """DVC's own parser, its targets among the stages, and changes of parameters that are valid."""
    from dvc.cli.parser import get_main_parser

    arguments = get_main_parser().parse_args(list(words))
    known = set(yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"])
    for target in getattr(arguments, "targets", None) or ():
        assert target.split("@")[0] in known or target.startswith("artifacts/")
    if changes := getattr(arguments, "set_param", None):
        activate("demo", changes)
        everything_is_valid()


def everything_is_valid() -> None:
    params = read_params()
    for stage in STAGES:
        for keys in stage.repetitions(params):
            stage.config(params, keys)


def is_preset(command: Command) -> bool:
    ours = our_words(command.words)
    return bool(ours and ours[0] == "pipeline" and ours[1][:1] == ["preset"] and len(ours[1]) > 1)


@pytest.mark.parametrize("command", [c for c in COMMANDS if is_preset(c)], ids=str)
def test_every_preset_that_is_shown_can_be_activated(command, checkout):
    _, (_, name, *changes) = our_words(command.words)
    activate(name, [change for change in changes if "=" in change])
    everything_is_valid()


def shown_changes() -> list[tuple[str, str]]:
    """Changes in help, messages and the presets' comments, each with the presets it is shown for."""
    texts = [CliRunner().invoke(app, ["preset", "--help"]).output]
    with pytest.raises(InputError) as refused:
        activate("demo", ["no equals sign"])
    texts += [str(refused.value), *(path.read_text() for path in (ROOT / "presets").glob("*.yaml"))]
    shown = []
    for text in texts:
        named = re.compile(r"\bpreset (\w+)((?:\s+[\w.]+=[^\s`]+)+)")
        joined = text.replace("\n# ", " ")
        shown += [(name, change) for name, rest in named.findall(joined) for change in CHANGE.findall(rest)]
        shown += [(name, change) for change in CHANGE.findall(named.sub("", joined)) for name in PRESET_NAMES]
    return shown


def test_every_change_that_help_and_messages_show_can_be_typed(checkout):
    shown = shown_changes()
    assert "build_engine.engine" in {change.split("=")[0] for _, change in shown}
    for name, change in shown:
        activate(name, [change])
        everything_is_valid()


def merged(below: object, above: object) -> object:
    """``above`` over ``below``; a section of another kind replaces the one below."""
    if not (isinstance(below, dict) and isinstance(above, dict)):
        return above
    if above.get("kind", below.get("kind")) != below.get("kind"):
        return above
    return below | {key: merged(below.get(key), value) for key, value in above.items()}


@pytest.mark.parametrize("block", of_language("yaml"), ids=str)
def test_every_section_that_is_shown_is_valid(block, checkout):
    shown = yaml.safe_load(block.body)
    assert shown
    students = [*shown.get("students", ()), *shown.get("distill", ()), *shown.get("align", ())]
    params = merged(read_params(), shown)
    if students:
        params["students"] = list(dict.fromkeys(students))
    PARAMS.write_text(yaml.safe_dump(params))
    sections = {(stage.section or stage.name).partition(".")[0]: [] for stage in STAGES}
    for stage in STAGES:
        sections[(stage.section or stage.name).partition(".")[0]].append(stage)
    for name in shown.keys() - {"students", "precisions", "promote"}:
        assert name in sections
        for stage in sections[name]:
            for keys in stage.repetitions(read_params()):
                if "student" in keys and name in ("distill", "align") and keys["student"] not in shown[name]:
                    continue
                stage.config(read_params(), keys)
    if "promote" in shown:
        section(read_params(), "promote", PromoteConfig)


@pytest.fixture(scope="module")
def with_artifacts(tmp_path_factory):
    """A folder where the bundled teacher stands for each artifact that a snippet loads."""
    folder = tmp_path_factory.mktemp("snippets")
    for place in ("artifacts/teacher", "artifacts/build_engine/tinysam_nano/int8"):
        (folder / place).mkdir(parents=True)
        Card.seal(folder / place, teacher(TeacherConfig(name="bundled"), out=folder / place, log=silent), {})
    (folder / "docs/images").mkdir(parents=True)
    return folder


NEEDS = {"mlflow": "a registry, which the slow test has", 'device="cuda"': "a GPU", "tritonclient": "a server"}
"""What snippets need that the default tests have not."""


@pytest.mark.parametrize("block", of_language("python"), ids=str)
def test_every_snippet_runs(block, with_artifacts, monkeypatch):
    code = compile(block.body, str(block), "exec")
    if any(mark in block.body for mark in NEEDS):
        return
    monkeypatch.chdir(with_artifacts)
    for other in of_language("python"):  # modules that the page has the reader write
        if other.title and other.page == block.page and other != block:
            name = other.title.removesuffix(".py").replace("/", ".")
            module = types.ModuleType(name)
            exec(other.body, module.__dict__)
            monkeypatch.setitem(sys.modules, name, module)
    exec(code, {"__name__": "snippet"})
