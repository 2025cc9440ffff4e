"""The report: one self-contained HTML page with light and dark scheme, for desktop and phone."""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from pipeline.compare import table
from pipeline.compare.drawing import Plot
from pipeline.compare.evaluations import DATASET, Evaluation, LeftOut, Refusals
from pipeline.compare.grid import Section
from pipeline.compare.leaderboard import Row, best
from pipeline.compare.measures import leaderboard_grid, slower_than_fp32
from pipeline.compare.pictures import Case, Tile
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
    gallery: Sequence[Case]
    everything: Sequence[Sequence[Tile]]
    """The photograph and each model's masks by mode, per image."""
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
    def winner(self) -> Row | None:
        """The student with the highest box mIoU."""
        return next((row for row in self.rows if row["role"] == "student"), None)

    @property
    def splits(self) -> list[tuple[str, float, float]]:
        """Name, images and instances of each split."""
        splits = ("train", "calibration", "validation")
        others = [n.removesuffix("_instances") for n in self.dataset if n.endswith("_instances")]
        names = [n for n in dict.fromkeys([*splits, *others]) if f"{n}_images" in self.dataset]
        return [(n, self.dataset[f"{n}_images"], self.dataset.get(f"{n}_instances", 0.0)) for n in names]

    @property
    def contents(self) -> list[tuple[str, str]]:
        """Element id and title of each section of the page."""
        parts = [("leaderboard", "Leaderboard"), ("plots", "Plots")]
        parts += [(f"measure-{number}", section.title) for number, section in enumerate(self.sections, start=1)]
        for element_id, title, content in (
            ("sensitivity", "Quantization sensitivity by layer", self.sensitivities),
            ("everything", "Everything mode: examples", self.everything),
            ("pictures", "Example masks", self.gallery),
            ("worst", "Largest losses against the teacher", self.worst),
            ("best", "Largest gains over the teacher", self.best),
            ("published", "Published and measured results", self.published),
            ("lineage", "Lineage", True),
        ):
            if content:
                parts.append((element_id, title))
        return parts


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
    return environment.get_template("report.html.j2").render(
        page=page,
        contents=page.contents,
        teacher=page.rows[0],
        winner=page.winner,
        best=best(page.rows),
        leaderboard=leaderboard_grid(page.rows, page.baselines, page.refused),
        below=[f"{row['model']} {row['precision']}" for row in page.rows if below_trivial(row)],
        dataset_digest=page.evaluations[0].card.parents[DATASET],
        slower=slower_than_fp32(page.rows),
        processor=next((row["processor"] for row in page.rows if row.get("processor")), None),
        unguarded=[e.name for e in page.evaluations if e.guarded is False],
        style=Markup((_HERE / "report.css").read_text(encoding="utf-8")),
        script=Markup(script),
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _breakable(name: str) -> Markup:
    """Escape a name and allow line breaks after underscores."""
    return escape(name).replace("_", Markup("_<wbr>"))
