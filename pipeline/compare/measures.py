"""The tables of the report: the leaderboard, and what else was measured. What was not measured has no table."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare import table
from pipeline.compare.evaluations import Refusals
from pipeline.compare.grid import Cell, Column, Grid, Line, Section, Tone, Write, model_cell, number, of_models
from pipeline.compare.leaderboard import Row, best, measures
from pipeline.ops.metrics import BANDS, PAYS_FROM, below_trivial, lower_is_better

_SAYS = {"box": "box", "click": "1 click", "click3": "3 clicks", "click5": "5 clicks"} | {
    "click3_fed": "3 clicks, mask fed back",
    "click5_fed": "5 clicks, mask fed back",
}
_WORDS = {"miou": "mIoU", "iou": "IoU", "ms": "ms", "mib": "MiB", "ap": "AP", "macs": "MACs"} | {
    "retained": "mIoU kept of teacher's",
    "ar100": "AR@100",
    "ar1000": "AR@1000",
}
_DETECTOR = re.compile(r"^(?P<name>.+)_ap(?P<part>(_small|_medium|_large|_rare|_common|_frequent|50|75|_r|_c|_f)?)$")
_WRITE: Mapping[str, Write] = {"ms": table.amount, "mib": table.amount, "s": table.amount, "macs": table.large}

Wanted = dict[str, tuple[str, Write, bool]]


def leaderboard_grid(rows: Sequence[Row], baselines: Sequence[Row], refused: Refusals) -> Grid:
    """What people look at first: models with the best student of each column, trivial masks, and what was refused."""
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


def _leaders(place: int, row: Row, winners: Mapping[str, int]) -> list[Cell]:
    def cell(name: str, write: Write, **more: Any) -> Cell:
        tone: Tone = "worse" if name in trivial else "best" if winners.get(name) == place else ""
        return Cell(text=write(row[name]), value=row[name], tone=tone, **more)

    trivial = [f"{prompt}_miou" for prompt in below_trivial(row)]

    def kept(prompt: str) -> dict[str, Any]:
        share = row[f"{prompt}_retained"] if row["role"] == "student" else None
        return {} if share is None else {"below": table.share(share), "share": share}

    parts = f"{table.amount(row['encoder_ms'])} + {table.amount(row['decoder_ms'])}"
    return [
        model_cell(row),
        cell("box_miou", table.score, **kept("box")),
        cell("click_miou", table.score, **kept("click")),
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
    """All tables after the leaderboard that there are figures for."""
    found = [
        _sizes([*rows, *baselines]),
        _clicks(rows),
        _trust(rows),
        _detectors(rows),
        _everything(rows),
        quantization(rows),
    ]
    return [section for section in found if section is not None]


def _section(title: str, note: str, *grids: Grid | None) -> Section | None:
    kept = [grid for grid in grids if grid is not None]
    return Section(title=title, note=note, grids=kept) if kept else None


def _sizes(rows: Sequence[Row]) -> Section | None:
    wanted: Wanted = {
        f"{prompt}_miou_{band}": (f"{says} {band}", table.score, False)
        for prompt, says in (("box", "Box"), ("click", "Click"))
        for band in BANDS
    }
    note = "mIoU over objects of up to 32², up to 96², and of more pixels."
    return _section("By size of objects", note, of_models(rows, wanted))


def _clicks(rows: Sequence[Row]) -> Section | None:
    if not any(name.startswith(("click3", "click5")) for name in measures(rows)):
        return None
    wanted: Wanted = {
        f"{prompt}_miou": (says.capitalize(), table.score, False) for prompt, says in _SAYS.items() if prompt != "box"
    }
    note = (
        "mIoU after one, three and five clicks. Each further click is where the mask is most wrong: a foreground click "
        "where it misses the object, a background click where it spills over."
    )
    return _section("Clicks", note, of_models(rows, wanted))


def _trust(rows: Sequence[Row]) -> Section | None:
    wanted: Wanted = {}
    for prompt, says in (("box", "box"), ("click", "click")):
        wanted |= {
            f"{prompt}_agreement": (f"Agreement, {says}", table.score, False),
            f"{prompt}_boundary_iou": (f"Boundary IoU, {says}", table.score, False),
            f"{prompt}_calibration_error": (f"Calibration error, {says}", table.score, True),
        }
    note = (
        "Agreement is the mean IoU of a student's masks with the teacher's for the same prompt; it needs no labels. "
        "Boundary IoU looks only at pixels near the outline. The calibration error is how far the IoU that a model "
        "predicts for its masks lies from the true one, on average over ten bins."
    )
    return _section("Agreement, boundaries and calibration", note, of_models(rows, wanted))


def _detectors(rows: Sequence[Row]) -> Section | None:
    matches = [found for name in measures(rows) if (found := _DETECTOR.match(name))]
    by_name: dict[str, list[re.Match[str]]] = {}
    for found in sorted(matches, key=lambda found: _part(found["part"])):
        by_name.setdefault(found["name"], []).append(found)
    alone = {n: found[0].string for n, found in by_name.items() if len(found) == 1}
    grids = [of_models(rows, {metric: (f"{n}: AP", table.score, False) for n, metric in sorted(alone.items())})]
    for name, parts in sorted(by_name.items()):
        wanted = {one.string: ("AP" + one["part"].replace("_", " "), table.score, False) for one in parts}
        grid = of_models(rows, wanted) if name not in alone else None
        grids.append(grid and Grid(title=name, columns=grid.columns, lines=grid.lines))
    note = "Mask AP where a detector's boxes are the prompts and its scores rank the masks, by name of the boxes."
    return _section("With a detector's boxes", note, *grids)


def _part(part: str) -> int:
    """All first, then small to large, then the rest."""
    order = ["", *(f"_{band}" for band in BANDS)]
    return order.index(part) if part in order else len(order)


def _everything(rows: Sequence[Row]) -> Section | None:
    wanted: Wanted = {}
    for mode in ("dense", "hierarchical"):
        name, says = f"everything_{mode}", mode.capitalize()
        wanted |= {
            f"{name}_ar100": (f"{says} AR@100", table.score, False),
            f"{name}_ar1000": (f"{says} AR@1000", table.score, False),
            f"{name}_miou": (f"{says} mIoU", table.score, False),
            f"{name}_masks": (f"{says} masks", table.amount, False),
            f"{name}_s": (f"{says}, s", table.amount, True),
        }
    wanted["everything_miou"] = ("mIoU, hierarchical to dense", table.score, False)
    note = (
        "Without prompts: dense asks at every point of a grid, hierarchical at every fourth first, then only where "
        "nothing was found with confidence. AR is average recall, mIoU that of each object with the mask that fits it "
        "best. Masks are counted per image on average; seconds are the median, encoding included."
    )
    return _section("Everything mode", note, of_models(rows, wanted))


def quantization(rows: Sequence[Row]) -> Section | None:
    """What lower precision costs each student: every figure of it beside that of fp32."""
    whole = {row["model"]: row for row in rows if row["role"] == "student" and row["precision"] == "fp32"}
    pairs = [
        (whole[row["model"]], row)
        for row in rows
        if row["role"] == "student" and row["precision"] != "fp32" and row["model"] in whole
    ]
    names = [n for n in measures(rows) if any(None not in (a.get(n), b.get(n)) for a, b in pairs)]
    if not names:
        return None
    columns = [Column(title="Figure", words=True, less_is_better=True)]
    columns += [Column(title=f"{low['model']} {low['precision']}") for _, low in pairs]
    lines = [Line([Cell(text=spoken(n), value=spoken(n)), *(_change(n, a, b) for a, b in pairs)]) for n in names]
    note = (
        "The difference of each figure to the same student's in fp32, and both figures below it. Green is for the "
        "better, red for the worse, whichever way the figure counts."
    )
    return Section(title="What quantization costs", note=note, grids=[Grid(columns=columns, lines=lines)])


def slower_than_fp32(rows: Sequence[Row]) -> list[str]:
    """Students in a lower precision whose encoder is hardly faster than in fp32, each with both times in words."""
    whole = {row["model"]: row["encoder_ms"] for row in rows if row["role"] == "student" and row["precision"] == "fp32"}
    return [
        f"{row['model']} {row['precision']} encodes in {table.amount(row['encoder_ms'])} ms, "
        f"fp32 in {table.amount(whole[row['model']])} ms"
        for row in rows
        if row["role"] == "student" and row["precision"] != "fp32"
        if row["encoder_ms"] is not None and whole.get(row["model"]) is not None
        if whole[row["model"]] < PAYS_FROM * row["encoder_ms"]
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


def spoken(name: str) -> str:
    """A measure as people say it: ``click3_fed_miou_small`` is ``3 clicks, mask fed back mIoU small``."""
    prompt = max((p for p in _SAYS if name.startswith(f"{p}_")), key=len, default="")
    rest = name[len(prompt) :].lstrip("_").replace("_", " ")
    words = [_WORDS.get(word, word) for word in rest.split()]
    text = " ".join(filter(None, [_SAYS.get(prompt, ""), *words]))
    return text[:1].upper() + text[1:]
