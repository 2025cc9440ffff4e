"""Tables of the report: the leaderboard and one per group of metrics. Groups that were not measured are left out."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pipeline.compare import table
from pipeline.compare.evaluations import Refusals
from pipeline.compare.grid import Cell, Column, Grid, Line, Section, Tone, Write, model_cell, number, of_models
from pipeline.compare.leaderboard import Row, best, measures
from pipeline.ops.metrics import BANDS, PAYS_FROM, below_trivial, lower_is_better

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
_WRITE: Mapping[str, Write] = {"ms": table.amount, "mib": table.amount, "s": table.amount, "macs": table.large}

Metrics = dict[str, tuple[str, Write, bool]]


def leaderboard_grid(rows: Sequence[Row], baselines: Sequence[Row], refused: Refusals) -> Grid:
    """Leaderboard: models with the best student of each column highlighted, trivial masks, refused candidates."""
    winners = best(rows)
    columns = [
        Column(title="Model", words=True, less_is_better=True),
        Column(title="Box mIoU"),
        Column(title="Click mIoU"),
        Column(title="Latency, ms", less_is_better=True),
        Column(title="Size, MiB", less_is_better=True),
        Column(title="Memory, MiB", less_is_better=True),
        Column(title="Parameters", less_is_better=True),
    ]
    lines = [Line(_leaders(i, row, winners), row["role"]) for i, row in enumerate([*rows, *baselines])]
    for (model, precision), refusal in refused.items():
        name = Cell(text=model, value=f"{model} {precision}", below=precision)
        lines.append(Line([name, Cell(text=f"refused by {refusal}", columns=len(columns) - 1)], "refused"))
    return Grid(columns=columns, lines=lines)


def _leaders(index: int, row: Row, winners: Mapping[str, int]) -> list[Cell]:
    def cell(name: str, write: Write, **more: Any) -> Cell:
        tone: Tone = "worse" if name in trivial else "best" if winners.get(name) == index else ""
        return Cell(text=write(row[name]), value=row[name], tone=tone, **more)

    trivial = [f"{prompt}_miou" for prompt in below_trivial(row)]

    def retained(prompt: str) -> dict[str, Any]:
        share = row[f"{prompt}_retained"] if row["role"] == "student" else None
        return {} if share is None else {"below": table.share(share), "share": share}

    parts = f"{table.amount(row['encoder_ms'])} + {table.amount(row['decoder_ms'])}"
    return [
        model_cell(row),
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


def sections(rows: Sequence[Row], baselines: Sequence[Row]) -> list[Section]:
    """All tables after the leaderboard, for the metrics that were measured."""
    available = [
        _sets([*rows, *baselines]),
        _sizes([*rows, *baselines]),
        _clicks(rows),
        _trust(rows),
        _detectors(rows),
        _everything(rows),
        quantization(rows),
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


def _everything(rows: Sequence[Row]) -> Section | None:
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
    note = (
        "Segmentation without prompts. Dense mode prompts with every point of a grid; hierarchical mode with every "
        "fourth point first, then only outside confident masks. AR is average recall; mIoU uses the best matching mask "
        "of each object. Masks are the mean per image; seconds are the median, encoding included."
    )
    return _section("Everything mode", note, of_models(rows, metrics))


def quantization(rows: Sequence[Row]) -> Section | None:
    """Metrics of each student in reduced precision, with their difference to fp32."""
    fp32 = {row["model"]: row for row in rows if row["role"] == "student" and row["precision"] == "fp32"}
    pairs = [
        (fp32[row["model"]], row)
        for row in rows
        if row["role"] == "student" and row["precision"] != "fp32" and row["model"] in fp32
    ]
    names = [n for n in measures(rows) if any(None not in (a.get(n), b.get(n)) for a, b in pairs)]
    if not names:
        return None
    columns = [Column(title="Metric", words=True, less_is_better=True)]
    columns += [Column(title=f"{reduced['model']} {reduced['precision']}") for _, reduced in pairs]
    lines = [
        Line([Cell(text=display_name(n), value=display_name(n)), *(_change(n, a, b) for a, b in pairs)]) for n in names
    ]
    note = (
        "Difference of each metric to the same student in fp32, with both values below. Green is better, red is worse, "
        "also for metrics where less is better."
    )
    return Section(title="Effect of quantization", note=note, grids=[Grid(columns=columns, lines=lines)])


def slower_than_fp32(rows: Sequence[Row]) -> list[str]:
    """Students in reduced precision whose encoder is hardly faster than in fp32, as text with both times."""
    fp32 = {row["model"]: row["encoder_ms"] for row in rows if row["role"] == "student" and row["precision"] == "fp32"}
    return [
        f"{row['model']} {row['precision']} encodes in {table.amount(row['encoder_ms'])} ms, "
        f"fp32 in {table.amount(fp32[row['model']])} ms"
        for row in rows
        if row["role"] == "student" and row["precision"] != "fp32"
        if row["encoder_ms"] is not None and fp32.get(row["model"]) is not None
        if fp32[row["model"]] < PAYS_FROM * row["encoder_ms"]
    ]


def _change(name: str, before: Row, after: Row) -> Cell:
    a, b = before.get(name), after.get(name)
    if a is None or b is None:
        return number(None)
    write = _WRITE.get(name.rpartition("_")[2], table.large if max(abs(a), abs(b)) >= 1e3 else table.score)
    shown = write(abs(b - a))
    if write(a) == write(b):
        return Cell(text="0", value=b - a, below=write(a))
    tone: Tone = "better" if (b > a) != lower_is_better(name) else "worse"
    sign = "+" if b > a else "\u2212"
    return Cell(text=f"{sign}{shown}", value=b - a, below=f"{write(a)} \u2192 {write(b)}", tone=tone)


def display_name(name: str) -> str:
    """Display name of a metric: ``click3_fed_miou_small`` is ``3 clicks, mask fed back mIoU small``."""
    prompt = max((p for p in _PROMPTS if name.startswith(f"{p}_")), key=len, default="")
    rest = name[len(prompt) :].lstrip("_").replace("_", " ")
    words = [_TERMS.get(word, word) for word in rest.split()]
    text = " ".join(filter(None, [_PROMPTS.get(prompt, ""), *words]))
    return text[:1].upper() + text[1:]
