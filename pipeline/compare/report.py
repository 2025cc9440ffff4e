"""The report: one self-contained HTML page with light and dark scheme, for desktop and phone."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.compare import table
from pipeline.compare.choice import Choice
from pipeline.compare.drawing import Plot
from pipeline.compare.evaluations import DATASET, Evaluation, LeftOut, Refusals
from pipeline.compare.gallery import Pictures
from pipeline.compare.grid import Section
from pipeline.compare.leaderboard import Row
from pipeline.compare.measures import leaderboard_grid
from pipeline.compare.pictures import Case
from pipeline.compare.plots import AGAINST_COST
from pipeline.compare.quantization import no_speedup
from pipeline.compare.sensitivity import Sensitivity
from pipeline.core.provenance import Commit
from pipeline.ops.metrics import below_trivial

_HERE = Path(__file__).parent


@dataclass(frozen=True, kw_only=True)
class Page:
    """Contents of the report."""

    title: str
    rows: Sequence[Row]
    """The teacher's first."""
    baselines: Sequence[Row]
    """Rows of the trivial predictors."""
    plots: Sequence[Plot]
    sections: Sequence[Section]
    """Tables after the leaderboard."""
    sensitivities: Sequence[Sensitivity]
    published: Section | None
    choice: Choice | None
    """The student to register; None without students."""
    gallery: Sequence[Pictures]
    """Pictures by model, at the top of the page."""
    everything: Sequence[Pictures]
    """Masks of everything mode by model."""
    worst: Mapping[str, Sequence[Case]]
    """By student."""
    best: Mapping[str, Sequence[Case]]
    evaluations: Sequence[Evaluation]
    """In the order of ``rows``."""
    refused: Refusals
    left_out: Sequence[LeftOut]
    dataset: Mapping[str, float]
    """Counts of the dataset."""
    commit: Commit

    @property
    def open_plots(self) -> list[Plot]:
        """The two most telling plots, which are not folded."""
        return [plot for plot in self.plots if plot.name in AGAINST_COST][:2]

    @property
    def folded_plots(self) -> list[Plot]:
        """All others."""
        return [plot for plot in self.plots if plot not in self.open_plots]

    @property
    def splits(self) -> list[tuple[str, float, float]]:
        """Name, images and instances of each split."""
        splits = ("train", "calibration", "validation")
        others = [n.removesuffix("_instances") for n in self.dataset if n.endswith("_instances")]
        names = [n for n in dict.fromkeys([*splits, *others]) if f"{n}_images" in self.dataset]
        return [(n, self.dataset[f"{n}_images"], self.dataset.get(f"{n}_instances", 0.0)) for n in names]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Element id and title of the parts of the page that are not folded, and of the folded ones together."""
        pictures = [("pictures", "Pictures")] if self.gallery else []
        return [*pictures, ("leaderboard", "Leaderboard"), ("plots", "Accuracy against cost"), ("details", "Details")]


def render(page: Page) -> str:
    """Render the page as HTML; all names are escaped, and a content security policy allows only the page's script."""
    environment = Environment(
        loader=FileSystemLoader(_HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "score": table.score,
        "share": lambda value: table.share(value).replace(" ", "\u00a0"),
        "breakable": _breakable,
        "amount": table.amount,
        "svg": Markup,  # trusted: made by pipeline.compare.drawing
    }
    script = (_HERE / "report.js").read_text(encoding="utf-8")
    chosen = page.choice.row if page.choice else None
    return environment.get_template("report.html.j2").render(
        page=page,
        contents=page.contents,
        teacher=page.rows[0],
        chosen=chosen,
        leaderboard=leaderboard_grid(
            page.rows, page.baselines, page.refused, [e.scores for e in page.evaluations], chosen
        ),
        warnings=_warnings(page),
        dataset_digest=page.evaluations[0].card.parents[DATASET],
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _warnings(page: Page) -> list[str]:
    """What a reader must know before the figures, one sentence each."""
    warnings = []
    names = [f"{row['model']} {row['precision']}" for row in page.rows]
    timed = [e.name for e in page.evaluations if e.guarded is not None]
    unguarded = [e.name for e in page.evaluations if e.guarded is False]
    if unguarded:
        which = _all_or_some(unguarded, timed, "models")
        warnings.append(f"The machine was busy while the latency of {which} was measured: these are upper bounds.")
    below = [name for name, row in zip(names, page.rows, strict=True) if below_trivial(row)]
    if below:
        students = [name for name, row in zip(names, page.rows, strict=True) if row["role"] == "student"]
        kind = "students" if below == students else "models"
        which = _all_or_some(below, students if below == students else names, kind)
        one = len(below) == 1
        warnings.append(
            f"{which[:1].upper()}{which[1:]} {'is' if one else 'are'} no better than a trivial mask, by boxes or by "
            "clicks (a filled box, an ellipse in it, or a disc around the click): do not use "
            f"{'it' if one else 'them'}, whatever the share of the teacher's mIoU."
        )
    processors = (row.get("processor") for row in page.rows if row["role"] == "student")
    processor = next(filter(None, processors), None)
    warnings.append(no_speedup(page.rows, processor))
    return [warning for warning in warnings if warning]


def _all_or_some(names: Sequence[str], of: Sequence[str], kind: str) -> str:
    """Names of some models, or ``all 7 models``."""
    return f"all {len(of)} {kind}" if len(names) == len(of) > 1 else ", ".join(names)


def _breakable(name: str) -> Markup:
    """Escape a name and allow line breaks after underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))
