"""Compare students with their teacher: leaderboard, plots and an HTML report with example masks."""

import logging
from itertools import product
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.compare import gallery, pictures
from pipeline.compare.choice import choose, headline
from pipeline.compare.evaluations import read_all, read_baselines
from pipeline.compare.everything import overlays
from pipeline.compare.leaderboard import baseline_rows, leaderboard, points
from pipeline.compare.measures import sections
from pipeline.compare.plots import draw
from pipeline.compare.published import beside_measured
from pipeline.compare.quantization import quantization
from pipeline.compare.report import Page, render
from pipeline.compare.sensitivity import sensitivities
from pipeline.compare.table import leaderboard_text
from pipeline.core import provenance
from pipeline.core.artifact import Contents, read_metrics, write_json, write_metrics, write_refusals
from pipeline.core.config import Config
from pipeline.core.log import Log
from pipeline.data import coco
from pipeline.ops.gate import PromoteConfig

__all__ = ["CompareConfig", "compare", "leaderboard_text"]

_LOGGER = logging.getLogger(__name__)


class CompareConfig(Config):
    """What the report shows."""

    title: str = "SAM Distillery"
    pictures: Annotated[int, Field(ge=0)] = 6
    """Validation images in the gallery, six in a row; `evaluate` must have kept as many."""
    extremes: Annotated[int, Field(ge=0)] = 3
    """Masks shown where each student does worst, and as many where it does best."""
    students: list[str] | None = None
    """Those that are compared, `students` of params.yaml; without, all that were evaluated."""
    precisions: list[str] | None = None
    """Likewise, `precisions` of params.yaml."""
    promote: PromoteConfig = PromoteConfig()
    """Section `promote` of params.yaml: its rules select the student to register."""

    def candidates(self) -> list[tuple[str, str]] | None:
        """Pairs of student and precision to compare; None for all that were evaluated."""
        if self.students is None or self.precisions is None:
            return None
        return list(product(self.students, self.precisions))


def compare(
    config: CompareConfig,
    *,
    prepare: Path,
    quantize: Path,
    evaluate_teacher: Path,
    evaluate: Path,
    out: Path,
    log: Log,
) -> Contents:
    """Write ``leaderboard.json``, ``metrics.json``, ``plots.json``, ``plots/*.png`` and ``report.html``.

    ``metrics.json`` has a few metrics of the student to register and of the teacher, for `dvc exp show`;
    ``leaderboard.json`` has all metrics of all models.
    ``refusals.json`` lists the candidates that failed a gate before evaluation: model, precision, stage, rule, value,
    limit and reason.

    Args:
        config: Section ``compare`` of params.yaml.
        prepare: The dataset.
        quantize: Directory of the students' quantized artifacts, which hold the sensitivity reports.
        evaluate_teacher: The teacher's evaluation.
        evaluate: Directory of the students' evaluations. Candidates of params.yaml without an evaluation, or with one
            on another dataset, are left out and listed in the report.
        out: Empty directory for the artifact.
        log: Receives the number of models compared, refused and left out.

    Raises:
        InputError: An evaluation is missing or damaged, or the teacher was evaluated on another dataset.
    """
    evaluations, refused, left_out = read_all(prepare, evaluate_teacher, evaluate, config.candidates())
    for other in left_out:
        _LOGGER.warning("%s is left out of the comparison: %s", other.name, other.reason)
    baselines = read_baselines(evaluate_teacher, evaluations[0].datasets)
    rows = leaderboard(evaluations, baselines)
    trivial = baseline_rows(baselines, rows[0])
    order = {(row["model"], row["precision"], row["role"]): index for index, row in enumerate(rows)}
    evaluations.sort(key=lambda e: order[e.model, e.precision, e.role])
    validation = coco.read(prepare / "validation" / "instances.json", min_area_px=1).photographs
    shown = [photograph for photograph in validation if photograph.instances]
    worst, best = pictures.extremes(prepare, shown, evaluations, config.extremes)
    dataset = read_metrics(prepare)
    plots = draw(rows, evaluations, out / "plots")
    choice = choose(config.promote, rows)
    is_open = gallery.representatives(rows, choice.row if choice else None)
    objects = pictures.gallery(prepare, shown, evaluations, config.pictures)
    effect = quantization(rows, [evaluation.scores for evaluation in evaluations])
    page = Page(
        title=config.title,
        rows=rows,
        choice=choice,
        plots=plots,
        sections=[*sections(rows, trivial, evaluations[0].everything_images), *([effect] if effect else [])],
        sensitivities=sensitivities(rows, quantize, out / "plots"),
        published=beside_measured(rows),
        everything=gallery.of_everything(overlays(prepare, evaluations), evaluations),
        gallery=[
            *gallery.of_photographs(evaluations, is_open),
            *gallery.of_objects(objects, evaluations, is_open),
        ],
        worst=worst,
        best=best,
        evaluations=evaluations,
        baselines=trivial,
        refused=refused,
        left_out=left_out,
        dataset=dataset,
        commit=provenance.commit(),
    )
    (out / "report.html").write_text(render(page), encoding="utf-8")
    write_json(out / "leaderboard.json", [*rows, *trivial])
    write_refusals(out, refused)
    write_json(out / "plots.json", points(rows))
    write_metrics(out, headline(choice.row if choice else None, rows[0]))
    log({"models": float(len(rows)), "refused": float(len(refused)), "left_out": float(len(left_out))})
    return Contents(kind="comparison")
