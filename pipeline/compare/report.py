"""The report: one page that needs nothing but itself, in light and dark, on a desk and on a phone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.compare import table
from pipeline.compare.evaluations import DATASET, Evaluation, LeftOut
from pipeline.compare.leaderboard import Row, best
from pipeline.compare.pictures import Case
from pipeline.compare.plots import Plot

_TEMPLATE = "report.html.j2"


@dataclass(frozen=True, kw_only=True)
class Page:
    """All that the report shows."""

    title: str
    rows: Sequence[Row]
    """The teacher's first."""
    plots: Sequence[Plot]
    gallery: Sequence[Case]
    worst: Sequence[Case]
    best: Sequence[Case]
    evaluations: Sequence[Evaluation]
    """In the order of ``rows``."""
    left_out: Sequence[LeftOut]
    dataset: Mapping[str, float]
    """Counts of the dataset."""

    @property
    def winner(self) -> Row | None:
        """The student with the highest mIoU with boxes."""
        return next((row for row in self.rows if row["role"] == "student"), None)

    @property
    def splits(self) -> list[tuple[str, float, float]]:
        """Name, images and instances of each split."""
        names = [n for n in ("train", "calibration", "validation") if f"{n}_images" in self.dataset]
        return [(n, self.dataset[f"{n}_images"], self.dataset.get(f"{n}_instances", 0.0)) for n in names]


def render(page: Page) -> str:
    """The page as HTML; every name in it is escaped."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "score": table.score,
        "share": table.share,
        "amount": table.amount,
        "large": table.large,
        "svg": Markup,  # ours, from pipeline.compare.plots
    }
    return environment.get_template(_TEMPLATE).render(
        page=page,
        teacher=page.rows[0],
        winner=page.winner,
        best=best(page.rows),
        dataset_digest=page.evaluations[0].card.parents[DATASET],
        unguarded=[e.name for e in page.evaluations if e.guarded is False],
    )
