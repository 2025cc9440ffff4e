"""Declaration of a stage, from which dvc.yaml, the CLI, the flow and the MLflow run are derived."""

import fcntl
import inspect
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

from pipeline.core import code, scratch
from pipeline.core.artifact import CARD, REFUSAL, Card, Contents, Refusal, write_json
from pipeline.core.config import Config, find, section
from pipeline.core.errors import InputError, Refused
from pipeline.core.log import Log
from pipeline.core.untrusted.json_file import shown

ARTIFACTS = Path("artifacts")
DRAFTS = ARTIFACTS / ".drafts"
"""Where stages write before renaming: outside every directory that is an input of another stage."""
DVC_LOCK = Path("dvc.lock")

RESTORE_ONLY = "PIPELINE_RESTORE_ONLY"
"""Environment variable that makes stages refuse to run, because their results must come from DVC's remote."""

Keys = Mapping[str, str]
"""Keys of one repetition of a stage: ``{"student": "efficientvit_sam_nano", "precision": "int8"}``."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of the pipeline. Strings in braces are formatted with the keys.

    Args:
        run: Function of the stage, ``package:function``; its name is the stage's name. It is called as
            ``function(config, *, <deps>, <keys>, out, log) -> Contents``, and imported only then, so that declarations
            are cheap.
        summary: What the stage does, in one line, for help and ``dvc stage list``.
        deps: Stages whose artifacts this one reads, passed by name. A stage repeated over more keys than this one is
            passed as the directory of all its repetitions.
        matrix: Keys the stage is repeated over; each has a list in params.yaml (``students``, ``precisions``).
        section: Section of params.yaml with the config. Default: the name.
        code: Code that decides the result but is not imported: files, folders, modules with their imports.
        data: More DVC dependencies, for example a path in params.yaml (``${prepare.data}``).
        plots: Plots of ``plots.json`` for `dvc plots`, in addition to ``plots/``: title to x field, y field, template.
        lists: Lists of params.yaml (``students``) that the config has as additional fields.
        sections: Other sections of params.yaml (``promote``) that the config has as additional fields.
        libraries: Packages whose version in deps/versions.yaml decides the result.
        cached: Whether DVC caches the result. If not, the stage runs whenever its result is missing.
        gpu: Whether the flow may hand the stage to a GPU worker.
        exclusive: Whether the flow runs nothing beside it, because it measures time.
        distributed: Whether processes started by ``torchrun`` may share the work; rank 0 writes the artifact.
    """

    run: str
    summary: str
    deps: tuple["Stage", ...] = ()
    matrix: tuple[str, ...] = ()
    section: str = ""
    code: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    sections: tuple[str, ...] = ()
    libraries: tuple[str, ...] = ()
    plots: Mapping[str, tuple[str, str, str]] = field(default_factory=dict)
    cached: bool = True
    gpu: bool = False
    exclusive: bool = False
    distributed: bool = False

    @property
    def name(self) -> str:
        """The verb: CLI command, DVC stage, params section, MLflow run."""
        return self.run.partition(":")[2]

    @property
    def module(self) -> str:
        """Dotted name of the stage's package."""
        return self.run.partition(":")[0]

    @property
    def function(self) -> Callable[..., Contents]:
        """The stage's function; importing it may take seconds."""
        function: Callable[..., Contents] = getattr(import_module(self.module), self.name)
        return function

    def target(self, keys: Keys) -> str:
        """DVC's name of one repetition, e.g. ``quantize@efficientvit_sam_nano-int8``."""
        return "@".join(filter(None, (self.name, "-".join(keys[k] for k in self.matrix))))

    def path(self, keys: Keys) -> Path:
        """Directory of one repetition's artifact; with fewer keys, the directory of the repetitions."""
        return ARTIFACTS.joinpath(self.name, *(keys[k] for k in self.matrix if k in keys))

    def repetitions(self, params: Mapping[str, Any]) -> list[dict[str, str]]:
        """All combinations of keys in params.yaml, in order."""
        values = [listed(params, f"{key}s") for key in self.matrix]
        return [dict(zip(self.matrix, combination, strict=True)) for combination in product(*values)]

    def settings(self, params: Mapping[str, Any], keys: Keys) -> Any:
        """This repetition's section of params.yaml, unvalidated.

        Raises:
            InputError: The section is missing.
        """
        return find(params, self._section(keys))

    @property
    def config_type(self) -> type[Config]:
        """The type of this stage's section."""
        annotation = inspect.signature(self.function).parameters["config"].annotation
        model: type[Config] = next((kind for kind in get_args(annotation) if kind is not type(None)), annotation)
        return model

    @property
    def optional(self) -> bool:
        """Whether the section may be null, with which the stage passes its input on, or leaves out what it computes."""
        return type(None) in get_args(inspect.signature(self.function).parameters["config"].annotation)

    def config(self, params: Mapping[str, Any], keys: Keys) -> Config | None:
        """Read and validate this stage's section of params.yaml; None for a null section.

        Raises:
            InputError: The section is missing or invalid, or params.yaml does not list one of ``keys``.
        """
        for key in self.matrix:
            if keys[key] not in (known := listed(params, f"{key}s")):
                raise InputError(f"unknown {key} {keys[key]!r}: `{key}s` of params.yaml lists {', '.join(known)}.")
        if self.optional and self.settings(params, keys) is None:
            return None
        more = top_level(params, self.lists, self.sections)
        return section(params, self._section(keys), self.config_type, more=more)

    def parents(self, keys: Keys) -> dict[str, str]:
        """Digests of the artifacts that this repetition reads, by stage and repetition.

        Raises:
            InputError: An artifact is missing.
        """
        digests = {}
        for dep in self.deps:
            directory = dep.path(keys)
            for card in sorted(directory.rglob(CARD)) or [directory / CARD]:
                name = Path(dep.name) / card.parent.relative_to(directory)
                digests[name.as_posix()] = Card.read(card.parent).digest
        return digests

    def inputs(self, params: Mapping[str, Any], keys: Keys) -> Iterator[tuple["Stage", dict[str, str]]]:
        """Repetitions of other stages whose artifacts a repetition of this stage reads."""
        for dep in self.deps:
            for dep_keys in dep.repetitions(params):
                if all(keys.get(key, value) == value for key, value in dep_keys.items()):
                    yield dep, dep_keys

    def upstream(self, params: Mapping[str, Any], keys: Keys) -> Iterator[tuple["Stage", dict[str, str]]]:
        """All repetitions that a repetition of this stage depends on, transitively, each once, nearest last."""
        visited: set[str] = set()

        def visit(stage: Stage, stage_keys: Keys) -> Iterator[tuple[Stage, dict[str, str]]]:
            for dep, dep_keys in stage.inputs(params, stage_keys):
                yield from visit(dep, dep_keys)
                if dep.target(dep_keys) not in visited:
                    visited.add(dep.target(dep_keys))
                    yield dep, dep_keys

        return visit(self, keys)

    def __call__(self, config: Config | None, keys: Keys, log: Log) -> Card:
        """Run one repetition in a draft directory and rename the finished artifact to its path.

        A candidate that misses a gate produces a refusal. If an input is a refusal, it is passed on without calling the
        stage's function.

        Raises:
            InputError: An input is invalid, or another process is making the same artifact.
        """
        out, draft = self.path(keys), DRAFTS / self.target(keys)
        with _only_writer(self.target(keys)):
            parents = self.parents(keys)
            for name in parents:  # DVC starts a stage only when it has cached its inputs
                scratch.discard(scratch_record(name.replace("/", "@", 1).replace("/", "-")))
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            try:
                contents = self._fill(draft, config, keys, log)
                card = Card.seal(draft, contents, parents)
                _replace(draft, out)
                scratch.release(scratch_record(self.target(keys)), contents.scratch)
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return card

    def _fill(self, draft: Path, config: Config | None, keys: Keys, log: Log) -> Contents:
        """Call the stage's function, or write a refusal if the candidate was refused before or is refused now."""
        refusal = self._inherited_refusal(keys)
        if refusal is None:
            inputs = {dep.name: dep.path(keys) for dep in self.deps}
            try:
                return self.function(config, **inputs, **keys, out=draft, log=log)
            except Refused as refused:
                refusal = Refusal.of(self.name, refused)
                shutil.rmtree(draft)
                draft.mkdir()
        write_json(draft / REFUSAL, refusal.model_dump())
        return Contents(kind="refusal", model=keys.get("student"), precision=keys.get("precision"), refusal=refusal)

    def _inherited_refusal(self, keys: Keys) -> Refusal | None:
        """A refusal among the single artifacts that this repetition reads; directories of repetitions do not count."""
        single = [dep for dep in self.deps if set(dep.matrix) <= keys.keys()]
        return next(filter(None, (Card.read(dep.path(keys)).refusal for dep in single)), None)

    def follow(self, config: Config | None, keys: Keys, log: Log) -> None:
        """Compute this process's share of a repetition whose artifact rank 0 of ``torchrun`` writes.

        Raises:
            InputError: An input is invalid.
        """
        if self._inherited_refusal(keys):
            return
        inputs = {dep.name: dep.path(keys) for dep in self.deps}
        with TemporaryDirectory() as directory:
            self.function(config, **inputs, **keys, out=Path(directory), log=log)

    def sources(self, keys: Keys) -> list[str]:
        """Files and whole folders of code that decide one repetition's result."""
        return code.sources(self.module, {path.format(**keys) for path in self.code})

    def to_dvc(self) -> dict[str, Any]:
        """This stage's entry in dvc.yaml."""
        keys = {k: f"${{item.{k}}}" for k in self.matrix}
        matrix = {"matrix": {k: f"${{{k}s}}" for k in self.matrix}} if self.matrix else {}
        out = str(self.path(keys))
        return {"desc": self.summary} | matrix | {
            # `exec` replaces DVC's shell, so that the stage notices when DVC is killed.
            "cmd": " ".join(["exec python -m pipeline", self.name, *(f"--{k} {v}" for k, v in keys.items())]),
            "deps": [*self.sources(keys), *self.data, *(str(dep.path(keys)) for dep in self.deps)],
            "params": [self._section(keys), *self.lists, *self.sections, *code.versions(self.libraries)],
            "outs": [out] if self.cached else [{out: {"cache": False}}],
        }  # fmt: skip

    def _section(self, keys: Keys) -> str:
        return (self.section or self.name).format(**keys)


def scratch_record(target: str) -> Path:
    """File that notes the scratch files of a finished repetition, until DVC has cached its artifact."""
    return DRAFTS / f"{target}.scratch"


def listed(params: Mapping[str, Any], key: str) -> list[str]:
    """A list of names in params.yaml, such as ``students``.

    Raises:
        InputError: The list is missing, or repeats a name.
    """
    values = params.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise InputError(f"params.yaml must list its {key}, for example `{key}: [...]`; it has {shown(values)}.")
    if len(set(values)) < len(values):
        raise InputError(f"params.yaml lists one of its {key} twice: {', '.join(values)}. Remove the repetition.")
    return values


def top_level(params: Mapping[str, Any], lists: Iterable[str], sections: Iterable[str]) -> dict[str, Any]:
    """Lists and sections at the top of params.yaml that another section's config has as additional fields.

    Raises:
        InputError: One is missing, or a list repeats a name.
    """
    return {name: listed(params, name) for name in lists} | {name: find(params, name) for name in sections}


def refuse_unknown_sections(stages: tuple[Stage, ...], params: Mapping[str, Any]) -> None:
    """Reject unknown top-level keys of params.yaml, which are spelling mistakes.

    Raises:
        InputError: There is an unknown key.
    """
    read = {(stage.section or stage.name).partition(".")[0] for stage in stages}
    read |= {f"{key}s" for stage in stages for key in stage.matrix} | {"promote"}
    unknown = sorted(set(map(str, params)) - read)
    if unknown:
        raise InputError(
            f"params.yaml has unknown key {unknown[0]!r}: remove it or correct its spelling; "
            f"known keys are {', '.join(sorted(read))}."
        )


@contextmanager
def _only_writer(target: str) -> Iterator[None]:
    """Hold the artifact's lock, which the system releases when the process ends."""
    DRAFTS.mkdir(parents=True, exist_ok=True)
    with (DRAFTS / f"{target}.lock").open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise InputError(f"{target} is already being made by process {holder}: wait for it or stop it.") from None
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        yield


def _replace(draft: Path, out: Path) -> None:
    """Move ``draft`` to ``out``; an earlier artifact is deleted only afterwards."""
    out.parent.mkdir(parents=True, exist_ok=True)
    earlier = draft.with_name(f"{draft.name}.earlier")
    shutil.rmtree(earlier, ignore_errors=True)
    if out.exists():
        out.rename(earlier)
    try:
        draft.rename(out)
    except BaseException:
        if earlier.exists() and not out.exists():
            earlier.rename(out)
        raise
    shutil.rmtree(earlier, ignore_errors=True)
