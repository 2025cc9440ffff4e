"""A stage is declared once; dvc.yaml, the CLI, the flow and the MLflow run are all read off it."""

import fcntl
import inspect
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml

from pipeline.core import code
from pipeline.core.artifact import CARD, METRICS, REFUSAL, Card, Contents, Refusal, write_json
from pipeline.core.config import Config, find, section
from pipeline.core.errors import InputError, Refused
from pipeline.core.log import Log

ARTIFACTS = Path("artifacts")
DRAFTS = ARTIFACTS / ".drafts"
"""Where stages write before they rename: outside every directory that is an input of another stage."""
DVC_LOCK = Path("dvc.lock")

RESTORE_ONLY = "PIPELINE_RESTORE_ONLY"
"""Environment variable: a stage that is started refuses, as its result was to come from DVC's remote."""

Keys = Mapping[str, str]
"""Which one of a repeated stage: ``{"student": "efficientvit_sam_nano", "precision": "int8"}``."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One verb of the pipeline. Texts in braces are filled with the keys.

    Args:
        run: Where the function is, ``package:function``; the function's name is the stage's name. It is called as
            ``function(config, *, <deps>, <keys>, out, log) -> Contents``, and imported only when that happens, so
            that declarations cost nothing.
        summary: What the stage does, in one line, for help and ``dvc stage list``.
        deps: Stages whose artifact this one reads, handed over by name. One that is repeated over more keys
            than this stage is handed over as the directory that holds all its repetitions.
        matrix: Keys the stage is repeated over; each has a list in params.yaml (``students``, ``precisions``).
        section: Section of params.yaml the config is read from. Default: the name.
        code: What decides the result and the stage does not import: files, folders, modules with what they import.
        data: More DVC dependencies, for example a path in params.yaml (``${prepare.data}``).
        plots: What `dvc plots` draws of ``plots.json``, beside ``plots/``: by title, fields across and up, template.
        lists: Lists of params.yaml (``students``) that the config has as fields beside its section's.
        libraries: Packages whose version, as deps/versions.yaml has it, decides the result.
        cached: DVC keeps the result in its cache. Without, the stage runs whenever its result is not in place.
        gpu: The flow may hand the stage to a GPU worker.
        exclusive: It measures time: the flow runs nothing beside it.
        distributed: Several processes, started by ``torchrun``, may share the work; the first writes the artifact.
    """

    run: str
    summary: str
    deps: tuple["Stage", ...] = ()
    matrix: tuple[str, ...] = ()
    section: str = ""
    code: tuple[str, ...] = ()
    data: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
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
        """The package the verb lives in, dotted."""
        return self.run.partition(":")[0]

    @property
    def function(self) -> Callable[..., Contents]:
        """The verb itself; importing it may take seconds."""
        found: Callable[..., Contents] = getattr(import_module(self.module), self.name)
        return found

    def target(self, keys: Keys) -> str:
        """DVC's name of one repetition, e.g. ``quantize@efficientvit_sam_nano-int8``."""
        return "@".join(filter(None, (self.name, "-".join(keys[k] for k in self.matrix))))

    def path(self, keys: Keys) -> Path:
        """Where one repetition leaves its artifact; with too few keys, the directory that holds the repetitions."""
        return ARTIFACTS.joinpath(self.name, *(keys[k] for k in self.matrix if k in keys))

    def repetitions(self, params: Mapping[str, Any]) -> list[dict[str, str]]:
        """All combinations of keys that params.yaml asks for, in order."""
        values = [listed(params, f"{key}s") for key in self.matrix]
        return [dict(zip(self.matrix, combination, strict=True)) for combination in product(*values)]

    def settings(self, params: Mapping[str, Any], keys: Keys) -> Any:
        """This repetition's section of params.yaml as it is written, unchecked.

        Raises:
            InputError: The section is absent.
        """
        return find(params, self._section(keys))

    @property
    def config_type(self) -> type[Config]:
        """The type of this stage's section."""
        model: type[Config] = inspect.signature(self.function).parameters["config"].annotation
        return model

    def config(self, params: Mapping[str, Any], keys: Keys) -> Config:
        """Read and check this stage's section of params.yaml.

        Raises:
            InputError: The section is absent or wrong, or params.yaml does not list one of ``keys``.
        """
        for key in self.matrix:
            if keys[key] not in (known := listed(params, f"{key}s")):
                raise InputError(f"unknown {key} {keys[key]!r}: `{key}s` of params.yaml lists {', '.join(known)}.")
        return section(
            params, self._section(keys), self.config_type, more={name: listed(params, name) for name in self.lists}
        )

    def parents(self, keys: Keys) -> dict[str, str]:
        """Digests of the artifacts in place that this repetition reads, by stage and repetition.

        Raises:
            InputError: One of them is not there.
        """
        digests = {}
        for dep in self.deps:
            place = dep.path(keys)
            for card in sorted(place.rglob(CARD)) or [place / CARD]:
                name = Path(dep.name) / card.parent.relative_to(place)
                digests[name.as_posix()] = Card.read(card.parent).digest
        return digests

    def inputs(self, params: Mapping[str, Any], keys: Keys) -> Iterator[tuple["Stage", dict[str, str]]]:
        """The repetitions of other stages whose artifacts one of this stage reads."""
        for dep in self.deps:
            for found in dep.repetitions(params):
                if all(keys.get(key, value) == value for key, value in found.items()):
                    yield dep, found

    def upstream(self, params: Mapping[str, Any], keys: Keys) -> Iterator[tuple["Stage", dict[str, str]]]:
        """All repetitions of other stages that one of this stage builds on, each once, nearest last."""
        seen: set[str] = set()

        def visit(below: Stage, below_keys: Keys) -> Iterator[tuple[Stage, dict[str, str]]]:
            for dep, found in below.inputs(params, below_keys):
                yield from visit(dep, found)
                if dep.target(found) not in seen:
                    seen.add(dep.target(found))
                    yield dep, found

        return visit(self, keys)

    def __call__(self, config: Config, keys: Keys, log: Log) -> Card:
        """Run one repetition beside its place, and put the finished artifact there in one step.

        A candidate that misses a gate leaves a refusal. So does one whose input is a refusal: the same, passed on
        without a call of the verb.

        Raises:
            InputError: An input is wrong, or another process is making the same artifact.
        """
        out, draft = self.path(keys), DRAFTS / self.target(keys)
        with _only_writer(self.target(keys)):
            parents = self.parents(keys)
            shutil.rmtree(draft, ignore_errors=True)
            draft.mkdir(parents=True)
            try:
                contents = self._fill(draft, config, keys, log)
                card = Card.seal(draft, contents, parents)
                _put(draft, out)
                contents.remove_scratch()
            finally:
                shutil.rmtree(draft, ignore_errors=True)
        return card

    def _fill(self, draft: Path, config: Config, keys: Keys, log: Log) -> Contents:
        """Call the verb, unless its candidate is refused already or is refused by it."""
        refusal = self._passed_on(keys)
        if refusal is None:
            places = {dep.name: dep.path(keys) for dep in self.deps}
            try:
                return self.function(config, **places, **keys, out=draft, log=log)
            except Refused as refused:
                refusal = Refusal.of(self.name, refused)
                shutil.rmtree(draft)
                draft.mkdir()
        write_json(draft / REFUSAL, refusal.model_dump())
        return Contents(kind="refusal", model=keys.get("student"), precision=keys.get("precision"), refusal=refusal)

    def _passed_on(self, keys: Keys) -> Refusal | None:
        """The refusal among the artifacts that this repetition reads; those below a directory count for themselves."""
        single = [dep for dep in self.deps if set(dep.matrix) <= keys.keys()]
        return next(filter(None, (Card.read(dep.path(keys)).refusal for dep in single)), None)

    def follow(self, config: Config, keys: Keys, log: Log) -> None:
        """Do this process's share of a repetition whose artifact another process of ``torchrun``'s writes.

        Raises:
            InputError: An input is wrong.
        """
        if self._passed_on(keys):
            return
        places = {dep.name: dep.path(keys) for dep in self.deps}
        with TemporaryDirectory() as scratch:
            self.function(config, **places, **keys, out=Path(scratch), log=log)

    def sources(self, keys: Keys) -> list[str]:
        """The code that decides one repetition's result: files, and folders all of whose files do."""
        return code.sources(self.module, {path.format(**keys) for path in self.code})

    def to_dvc(self) -> dict[str, Any]:
        """This stage as DVC writes it."""
        keys = {k: f"${{item.{k}}}" for k in self.matrix}
        matrix = {"matrix": {k: f"${{{k}s}}" for k in self.matrix}} if self.matrix else {}
        out = str(self.path(keys))
        return {"desc": self.summary} | matrix | {
            # `exec`: DVC's shell gives its place to the stage, which then sees when DVC is killed.
            "cmd": " ".join(["exec python -m pipeline", self.name, *(f"--{k} {v}" for k, v in keys.items())]),
            "deps": [*self.sources(keys), *self.data, *(str(dep.path(keys)) for dep in self.deps)],
            "params": [self._section(keys), *self.lists, *code.versions(self.libraries)],
            "outs": [out] if self.cached else [{out: {"cache": False}}],
        }  # fmt: skip

    def _section(self, keys: Keys) -> str:
        return (self.section or self.name).format(**keys)


def listed(params: Mapping[str, Any], key: str) -> list[str]:
    """A list of names in params.yaml, such as ``students``.

    Raises:
        InputError: There is no such list, or it repeats a name.
    """
    values = params.get(key)
    if not isinstance(values, list) or not values or not all(isinstance(v, str) for v in values):
        raise InputError(f"params.yaml must list its {key}, for example `{key}: [...]`; it has {values!r}.")
    if len(set(values)) < len(values):
        raise InputError(f"params.yaml lists one of its {key} twice: {', '.join(values)}. Remove the repetition.")
    return values


def refuse_unknown_sections(stages: tuple[Stage, ...], params: Mapping[str, Any]) -> None:
    """Refuse a top-level key of params.yaml that nothing reads: it is a spelling mistake.

    Raises:
        InputError: There is one.
    """
    read = {(stage.section or stage.name).partition(".")[0] for stage in stages}
    read |= {f"{key}s" for stage in stages for key in stage.matrix} | {"promote"}
    unknown = sorted(set(map(str, params)) - read)
    if unknown:
        raise InputError(
            f"params.yaml has unknown key {unknown[0]!r}: remove it or correct its spelling; "
            f"there is {', '.join(sorted(read))}."
        )


def dvc_yaml(stages: tuple[Stage, ...]) -> str:
    """The whole dvc.yaml."""
    top: dict[str, Any] = {"stages": {stage.name: stage.to_dvc() for stage in stages}}
    # DVC fills in the repetitions of stages, not of metrics: the comparison has the numbers of all of them.
    metrics = [str(stage.path({}) / METRICS) for stage in stages if not stage.cached and not stage.matrix]
    plots = [plot for stage in stages for plot in _dvc_plots(stage)]
    top |= ({"metrics": metrics} if metrics else {}) | ({"plots": plots} if plots else {})
    return "# Written by `make dvc.yaml`. Edit pipeline/stages.py instead.\n" + yaml.safe_dump(
        top, sort_keys=False, width=120
    )


def _dvc_plots(stage: Stage) -> list[str | dict[str, Any]]:
    """A stage's plots as DVC writes them."""
    place = str(stage.path({}) / "plots.json")
    drawn: list[str | dict[str, Any]] = [
        {title: {"x": {place: across}, "y": {place: up}, "template": template}}
        for title, (across, up, template) in stage.plots.items()
    ]
    return [*drawn, str(stage.path({}) / "plots")] if drawn else []


def has_cached_result(target: str) -> bool:
    """Whether dvc.lock remembers an earlier result of ``target``, which `dvc checkout` can bring back."""
    if not DVC_LOCK.is_file():
        return False
    entry = (yaml.safe_load(DVC_LOCK.read_text()) or {}).get("stages", {}).get(target, {})
    return any("hash" in out or "md5" in out for out in entry.get("outs", []))


@contextmanager
def _only_writer(target: str) -> Iterator[None]:
    """Hold the artifact's lock; the system drops it when the process ends, however it ends."""
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


def _put(draft: Path, out: Path) -> None:
    """Move ``draft`` to ``out``; an earlier artifact goes only when the new one is in its place."""
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
