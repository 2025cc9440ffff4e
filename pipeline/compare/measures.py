"""Tables of the report: the leaderboard and one per group of metrics. Groups that were not measured are left out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.compare import table
from pipeline.compare.evaluations import Refusals
from pipeline.compare.grid import Cell, Column, Grid, Line, Section, Tone, Write, model_cell, of_models
from pipeline.compare.leaderboard import Row, best, measures
from pipeline.compare.noise import Scores, differs
from pipeline.ops.metrics import BANDS, below_trivial

_PROMPTS = {"box": "box", "click": "1 click", "click3": "3 clicks", "click5": "5 clicks"} | {
    "click3_fed": "3 clicks, mask fed back",
    "click5_fed": "5 clicks, mask fed back",
}
_TERMS = {"miou": "mIoU", "iou": "IoU", "ms": "ms", "mib": "MiB", "ap": "AP", "macs": "MACs"} | {
    "retained": "share of teacher's mIoU",
    "ar100": "AR@100",
    "ar1000": "AR@1000",
}
_DETECTOR = re.compile(r"^(?P<name>.+)_ap(?P<part>(_small|_medium|_large|_rare|_common|_frequent|50|75|_r|_c|_f)?)$")

Metrics = dict[str, tuple[str, Write, bool]]


def leaderboard_grid(
    rows: Sequence[Row],
    baselines: Sequence[Row],
    refused: Refusals,
    scores: Sequence[Scores] = (),
    chosen: Row | None = None,
) -> Grid:
    """Leaderboard: models, trivial masks, refused candidates.

    The best student of each column is highlighted, and those that differ from it by noise only.

    Args:
        rows: The models.
        baselines: Trivial masks.
        refused: Refused candidates.
        scores: IoUs per object of each model; without, a fixed difference counts as noise.
        chosen: The student to register.
    """
    winners = ties(rows, scores)
    columns = [
        Column(title="Model", words=True, less_is_better=True),
        Column(title="Box mIoU"),
        Column(title="Click mIoU"),
        Column(title="Latency, ms", less_is_better=True),
        Column(title="Size, MiB", less_is_better=True),
        Column(title="Memory, MiB", less_is_better=True),
        Column(title="Parameters", less_is_better=True),
    ]
    lines = [Line(_leaders(i, row, winners, row is chosen), row["role"]) for i, row in enumerate([*rows, *baselines])]
    for (model, precision), refusal in refused.items():
        name = Cell(text=model, value=f"{model} {precision}", below=precision)
        lines.append(Line([name, Cell(text=f"refused by {refusal}", columns=len(columns) - 1)], "refused"))
    return Grid(columns=columns, lines=lines)


def ties(rows: Sequence[Row], scores: Sequence[Scores] = ()) -> dict[str, set[int]]:
    """For each compared metric the indices of the best student and of those no worse than it beyond noise."""
    equals = {}
    for name, first in best(rows).items():
        equals[name] = {
            i
            for i, row in enumerate(rows)
            if row["role"] == "student" and row[name] is not None
            if i == first
            or not differs(name, rows[first][name], row[name], (scores[first], scores[i]) if scores else None)
        }
    return equals


def _leaders(index: int, row: Row, winners: Mapping[str, set[int]], is_chosen: bool) -> list[Cell]:
    def cell(name: str, write: Write, **more: Any) -> Cell:
        tone: Tone = "worse" if name in trivial else "best" if index in winners.get(name, ()) else ""
        return Cell(text=write(row[name]), value=row[name], tone=tone, **more)

    trivial = [f"{prompt}_miou" for prompt in below_trivial(row)]

    def retained(prompt: str) -> dict[str, Any]:
        share = row[f"{prompt}_retained"] if row["role"] == "student" else None
        return {} if share is None else {"below": table.share(share), "share": share}

    parts = f"{table.amount(row['encoder_ms'])} + {table.amount(row['decoder_ms'])}"
    return [
        replace(model_cell(row), tag="selected" if is_chosen else ""),
        cell("box_miou", table.score, **retained("box")),
        cell("click_miou", table.score, **retained("click")),
        cell("latency_ms", table.amount, below="" if row["encoder_ms"] is None else parts),
        cell("size_mib", table.amount),
        cell("memory_mib", table.amount),
        cell(
            "parameters",
            table.large,
            below="" if row["encoder_macs"] is None else f"{table.large(row['encoder_macs'])} MACs",
        ),
    ]


def sections(rows: Sequence[Row], baselines: Sequence[Row], everything_images: int | None = None) -> list[Section]:
    """All tables after the leaderboard but the effect of quantization, for the metrics that were measured.

    Args:
        rows: The models.
        baselines: Trivial masks; they are in every table of mIoUs and of a detector's boxes.
        everything_images: Images evaluated in everything mode; None if unknown.
    """
    available = [
        _sets([*rows, *baselines]),
        _sizes([*rows, *baselines]),
        _clicks([*rows, *baselines]),
        _trust(rows),
        _detectors([*rows, *baselines]),
        _everything(rows, everything_images),
    ]
    return [section for section in available if section is not None]


def _section(title: str, note: str, *grids: Grid | None) -> Section | None:
    available = [grid for grid in grids if grid is not None]
    return Section(title=title, note=note, grids=available) if available else None


def _sets(rows: Sequence[Row]) -> Section | None:
    """What each data set is, and the accuracy on each if there are several."""
    datasets: Mapping[str, Mapping[str, Any]] = rows[0].get("datasets") or {}
    if not datasets:
        return None
    columns = [Column(title="Data set", words=True, less_is_better=True)]
    columns += [Column(title=title) for title in ("Images", "With instances", "Instances")]
    columns += [Column(title=title, words=True, less_is_better=True) for title in ("Protocol", "Digest")]
    lines = []
    for prefix, data in datasets.items():
        counts = [
            Cell(text=f"{data[key]:,}", value=float(data[key])) for key in ("images", "annotated_images", "instances")
        ]
        below = f"metrics {prefix}*" if prefix else "metrics of the leaderboard"
        name = Cell(text=data["name"], value=data["name"], below=below)
        digest = Cell(text=data["digest"][:12], value=data["digest"], code=True)
        lines.append(Line([name, *counts, Cell(text=data["protocol"], value=data["protocol"]), digest]))
    sets = [prefix for prefix in datasets if any(row.get(f"{prefix}box_miou") is not None for row in rows)]
    grids = [_set(rows, prefix, str(datasets[prefix]["name"])) for prefix in sets] if len(sets) > 1 else []
    note = (
        "With protocol “published” every annotation counts, with its own box and area, crowd regions included, as in "
        "EfficientViT-SAM's evaluation; “ours” leaves out crowd regions and the smallest masks. The digest is that of "
        "the annotations."
    )
    return _section("Data sets", note, Grid(columns=columns, lines=lines), *grids)


def _set(rows: Sequence[Row], prefix: str, name: str) -> Grid | None:
    metrics: Metrics = {
        f"{prefix}{prompt}_miou{band}": (f"{title}{band.replace('_', ' ')}", table.score, False)
        for prompt, title in (("box", "Box"), ("click", "1 click"), ("click3", "3 clicks"), ("click5", "5 clicks"))
        for band in ("", *(f"_{band}" for band in BANDS))
        if not band or prompt in ("box", "click")
    }
    grid = of_models(rows, metrics)
    return grid and replace(grid, title=f"mIoU on {name}")


def _sizes(rows: Sequence[Row]) -> Section | None:
    metrics: Metrics = {
        f"{prompt}_miou_{band}": (f"{title} {band}", table.score, False)
        for prompt, title in (("box", "Box"), ("click", "Click"))
        for band in BANDS
    }
    note = "mIoU of objects of up to 32², up to 96², and more than 96² pixels."
    return _section("Accuracy by object size", note, of_models(rows, metrics))


def _clicks(rows: Sequence[Row]) -> Section | None:
    if not any(name.startswith(("click3", "click5")) for name in measures(rows)):
        return None
    metrics: Metrics = {
        f"{prompt}_miou": (title.capitalize(), table.score, False)
        for prompt, title in _PROMPTS.items()
        if prompt != "box"
    }
    note = (
        "mIoU after one, three and five clicks. Each further click is placed in the largest error of the mask: a "
        "foreground click on a false negative, a background click on a false positive."
    )
    return _section("Clicks", note, of_models(rows, metrics))


def _trust(rows: Sequence[Row]) -> Section | None:
    metrics: Metrics = {}
    for prompt in ("box", "click"):
        metrics |= {
            f"{prompt}_agreement": (f"Agreement, {prompt}", table.score, False),
            f"{prompt}_boundary_iou": (f"Boundary IoU, {prompt}", table.score, False),
            f"{prompt}_calibration_error": (f"Calibration error, {prompt}", table.score, True),
        }
    note = (
        "Agreement is the mean IoU of a student's masks with the teacher's for the same prompt; it needs no labels. "
        "Boundary IoU counts only pixels near the outline. Calibration error is the mean absolute difference between "
        "predicted and true IoU over ten bins."
    )
    return _section("Agreement, boundaries and calibration", note, of_models(rows, metrics))


def _detectors(rows: Sequence[Row]) -> Section | None:
    matches = [match for name in measures(rows) if (match := _DETECTOR.match(name))]
    by_name: dict[str, list[re.Match[str]]] = {}
    for match in sorted(matches, key=lambda match: _part(match["part"])):
        by_name.setdefault(match["name"], []).append(match)
    alone = {n: group[0].string for n, group in by_name.items() if len(group) == 1}
    grids = [of_models(rows, {metric: (f"{n}: AP", table.score, False) for n, metric in sorted(alone.items())})]
    for name, parts in sorted(by_name.items()):
        metrics = {part.string: ("AP" + part["part"].replace("_", " "), table.score, False) for part in parts}
        grid = of_models(rows, metrics) if name not in alone else None
        grids.append(grid and Grid(title=name, columns=grid.columns, lines=grid.lines))
    note = "Mask AP with a detector's boxes as prompts and its scores as ranking, by name of the boxes."
    return _section("Average precision with a detector's boxes", note, *grids)


def _part(part: str) -> int:
    """Sort key: all objects first, then small to large, then the rest."""
    order = ["", *(f"_{band}" for band in BANDS)]
    return order.index(part) if part in order else len(order)


def _everything(rows: Sequence[Row], images: int | None) -> Section | None:
    metrics: Metrics = {}
    for mode in ("dense", "hierarchical"):
        name, title = f"everything_{mode}", mode.capitalize()
        metrics |= {
            f"{name}_ar100": (f"{title} AR@100", table.score, False),
            f"{name}_ar1000": (f"{title} AR@1000", table.score, False),
            f"{name}_miou": (f"{title} mIoU", table.score, False),
            f"{name}_masks": (f"{title} masks", table.amount, False),
            f"{name}_s": (f"{title}, s", table.amount, True),
        }
    metrics["everything_miou"] = ("mIoU, hierarchical to dense", table.score, False)
    measured = "" if images is None else f", measured on {images:,} {'image' if images == 1 else 'images'}"
    note = (
        f"Segmentation without prompts{measured}. Dense mode prompts with every point of a grid; hierarchical mode "
        "with a coarse grid first, then only outside confident masks. AR is average recall; mIoU uses the best "
        "matching mask of each object. Masks are the mean per image; seconds are the median, encoding included."
    )
    return _section("Everything mode", note, of_models(rows, metrics))


def display_name(name: str) -> str:
    """Display name of a metric: ``click3_fed_miou_small`` is ``3 clicks, mask fed back mIoU small``."""
    prompt = max((p for p in _PROMPTS if name.startswith(f"{p}_")), key=len, default="")
    rest = name[len(prompt) :].lstrip("_").replace("_", " ")
    words = [_TERMS.get(word, word) for word in rest.split()]
    text = " ".join(filter(None, [_PROMPTS.get(prompt, ""), *words]))
    return text[:1].upper() + text[1:]
