"""The gate: whether a challenger becomes champion. A pure function of measured values and of section ``promote``.

Rules of the model itself (`pipeline.ops.gate.check`) come first, then a lower precision against fp32 of the same
student, then challenger against champion on the same instances. IoUs are paired per instance and resampled by image,
so that noise neither promotes nor blocks: a drop refuses only if its whole interval lies beyond the allowed one, and a
gain counts only if its whole interval lies above zero. A challenger that is not more accurate must be faster or
smaller, and as accurate beyond noise.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from pipeline.ops.gate import ChampionConfig, PromoteConfig, Rule, Target, check, target_of
from pipeline.ops.metrics import BANDS, bands
from pipeline.promote.bootstrap import Means, columns, resampled, simultaneous
from pipeline.promote.instances import FP32, Instances

_REGISTER = "`python -m pipeline register` records them"
_FORCE = "`promote --force REASON` overrides"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """What is known of a registered version."""

    version: str
    metrics: Mapping[str, float]
    teacher: Mapping[str, float] = field(default_factory=dict)
    """Metrics of the teacher on the same data."""
    runtime: str = ""
    precision: str = "fp32"
    processor: str = ""
    """Where latency was measured."""
    latency_error_ms: float | None = None
    """Half width of the median latency's interval."""
    instances: Instances | None = None

    @property
    def target(self) -> Target:
        """What it runs on."""
        return target_of(self.runtime)


@dataclass(frozen=True)
class Verdict:
    """The outcome of all rules."""

    challenger: str
    """Version."""
    champion: str | None
    rules: Sequence[Rule]

    @property
    def passed(self) -> bool:
        """Whether every rule holds."""
        return all(rule.holds for rule in self.rules)

    @property
    def failures(self) -> str:
        """The rules that do not hold, in words."""
        return "; ".join(str(rule) for rule in self.rules if not rule.holds)


FEWEST_IMAGES = 3
"""Of a set whose differences are judged: with one or two images every resample has the same mean."""


class _Difference(NamedTuple):
    """A difference of mean IoUs with its interval."""

    name: str
    """Metric: ``box_miou``, ``lvis_click_miou_small``."""
    band: str
    """Size band; empty for all instances."""
    mean: float
    interval: tuple[float, float]
    images: int


def judge(config: PromoteConfig, challenger: Measured, champion: Measured | None) -> Verdict:
    """Evaluate every rule.

    Args:
        config: Section ``promote`` of params.yaml.
        challenger: The version to promote.
        champion: Champion of the same target; None if there is none.
    """
    row: dict[str, Any] = {**challenger.metrics, "runtime": challenger.runtime}
    rules = [*check(config, row, challenger.teacher), *_against_fp32(config, challenger)]
    if champion is not None and config.champion is not None:
        rules += _against_champion(config.champion, challenger, champion)
    return Verdict(challenger.version, champion.version if champion else None, rules)


def _against_fp32(config: PromoteConfig, model: Measured) -> list[Rule]:
    """A lower precision against fp32 of the same student, per prompt."""
    limit, settings = config.max_precision_drop, config.champion or ChampionConfig()
    if limit is None or model.precision in ("", "fp32"):
        return []
    table = {} if model.instances is None else model.instances.table
    own = {f"{prompt}_iou": table.get(f"{prompt}_iou{FP32}", np.array([np.nan])) for prompt in settings.prompts}
    if model.instances is None or any(np.isnan(column).any() for column in own.values()):
        note = (
            "fp32 of the student was not evaluated on this data. Add it to `precisions`, run `dvc repro` and register"
        )
        return [Rule(name="fp32", holds=False, note=f"{note} again, or set promote.max_precision_drop to null.")]
    differences = _differences(settings, model.instances, own, {""})
    return [
        Rule(
            name=f"{d.name}_vs_fp32",
            value=d.mean,
            limit=-limit,
            interval=d.interval,
            holds=d.interval[1] >= -limit,
        )
        for d in differences
    ]


def _against_champion(config: ChampionConfig, challenger: Measured, champion: Measured) -> list[Rule]:
    """Differences to the champion per prompt and size band, then what is better."""
    fault = _incomparable(config, challenger, champion)
    if fault:
        return [Rule(name="same_data", holds=False, note=f"{fault}; {_FORCE}")]
    assert challenger.instances is not None  # _incomparable saw both
    assert champion.instances is not None
    order = {key: i for i, key in enumerate(champion.instances.identities())}
    rows = [order[key] for key in challenger.instances.identities()]
    reference = {f"{prompt}_iou": champion.instances.table[f"{prompt}_iou"][rows] for prompt in config.prompts}
    differences = _differences(config, challenger.instances, reference, {"", *BANDS})
    rules = [
        Rule(
            name=f"{d.name}_vs_champion",
            value=d.mean,
            limit=-config.max_drop,
            interval=d.interval,
            holds=d.interval[1] >= -config.max_drop,
        )
        for d in differences
    ]
    return [
        *rules,
        _better(config, challenger, champion, [d for d in differences if not d.band and d.images >= config.min_images]),
    ]


def _incomparable(config: ChampionConfig, challenger: Measured, champion: Measured) -> str:
    """Why two versions cannot be compared; empty if they can."""
    for model, name in ((challenger, "challenger"), (champion, "champion")):
        if model.instances is None:
            return f"{name} version {model.version} has no results per instance ({_REGISTER})"
        missing = [prompt for prompt in config.prompts if prompt not in model.instances.prompts]
        if missing:
            return f"{name} version {model.version} has no results of prompt {missing[0]}"
    a, b = challenger.instances, champion.instances
    assert a is not None
    assert b is not None
    if a.data() != b.data():
        digests = [
            ", ".join(
                f"{prefix or 'validation'} {digest[:12]} by {protocol}" for prefix, (digest, protocol) in d.items()
            )
            for d in (b.data(), a.data())
        ]
        return (
            f"champion version {champion.version} was measured on other data ({digests[0]}) than challenger version "
            f"{challenger.version} ({digests[1]}): evaluate and register the champion's engine on this data"
        )
    if len(set(a.identities())) != len(a.identities()) or set(a.identities()) != set(b.identities()):
        return f"versions {champion.version} and {challenger.version} were measured on different instances"
    return ""


def _better(config: ChampionConfig, challenger: Measured, champion: Measured, overall: Sequence[_Difference]) -> Rule:
    """Whether the challenger is more accurate, or cheaper and as accurate."""
    images = _images(challenger.instances)
    if images < config.min_images:
        note = f"{images} validation images are too few to show a gain, at least {config.min_images} are needed"
        return Rule(name="gain", holds=False, note=f"{note}; {_FORCE}")
    best = max(overall, key=lambda d: d.interval[0])
    if best.interval[0] > 0:
        return Rule(
            name="gain",
            value=best.mean,
            limit=0.0,
            interval=best.interval,
            bound="low",
            holds=True,
            note=_gains(overall),
        )
    cheaper = _cheaper(config, challenger, champion)
    worst = min(overall, key=lambda d: d.interval[0])
    words = f"{worst.name} {worst.mean:+.4f} [{worst.interval[0]:+.4f}, {worst.interval[1]:+.4f}]"
    if cheaper and worst.interval[0] >= -config.cheaper_within:
        return Rule(
            name="gain",
            value=worst.mean,
            limit=-config.cheaper_within,
            interval=worst.interval,
            bound="low",
            holds=True,
            note=f"{cheaper}; {words} is within {config.cheaper_within:g}",
        )
    if cheaper:
        note = f"{cheaper}, but {words} is not shown to be within {config.cheaper_within:g} of the champion"
        return Rule(
            name="gain",
            value=worst.mean,
            limit=-config.cheaper_within,
            interval=worst.interval,
            bound="low",
            holds=False,
            note=note,
        )
    words = f"{best.name} {best.mean:+.4f} [{best.interval[0]:+.4f}, {best.interval[1]:+.4f}]"
    note = f"neither more accurate beyond noise ({words}) nor {config.speedup:g} times as fast or small"
    return Rule(name="gain", value=best.mean, limit=0.0, interval=best.interval, bound="low", holds=False, note=note)


def _gains(overall: Sequence[_Difference]) -> str:
    gains = [d for d in overall if d.interval[0] > 0]
    return ", ".join(f"{d.name} {d.mean:+.4f} [{d.interval[0]:+.4f}, {d.interval[1]:+.4f}]" for d in gains)


def _cheaper(config: ChampionConfig, challenger: Measured, champion: Measured) -> str:
    """What is faster or smaller by the factor, in words; latencies count only from one kind of processor."""
    new, old = challenger.metrics, champion.metrics
    gains = []
    if (
        challenger.processor
        and challenger.processor == champion.processor
        and "latency_ms" in new
        and "latency_ms" in old
    ):
        slow = new["latency_ms"] + (challenger.latency_error_ms or 0.0)
        fast = old["latency_ms"] - (champion.latency_error_ms or 0.0)
        if slow > 0 and fast / slow >= config.speedup:
            gains.append(f"latency {old['latency_ms']:.4g} to {new['latency_ms']:.4g} ms")
    if "size_mib" in new and "size_mib" in old and 0 < new["size_mib"] * config.speedup <= old["size_mib"]:
        gains.append(f"size {old['size_mib']:.4g} to {new['size_mib']:.4g} MiB")
    return ", ".join(gains)


def _differences(
    config: ChampionConfig, instances: Instances, reference: Mapping[str, np.ndarray], chosen: set[str]
) -> list[_Difference]:
    """Mean paired differences with simultaneous intervals, over all instances and per size band."""
    rng = np.random.default_rng(config.seed)
    parts, names = list[Means](), list[list[tuple[str, str]]]()
    for prefix in dict.fromkeys(instances.table["set"].tolist()):
        rows = instances.table["set"] == prefix
        values, named = _columns(config, instances, reference, prefix, chosen)
        part = resampled(values[rows], instances.table["image_id"][rows], config.resamples, rng)
        parts.append(part)
        names.append(named)
    differences = []
    for of_bands in (False, True):
        picked = [
            [
                i
                for i, (_, band) in enumerate(named)
                if bool(band) == of_bands and p.images[i] >= (config.min_images if band else FEWEST_IMAGES)
            ]
            for p, named in zip(parts, names, strict=True)
        ]
        if not any(picked):
            continue
        chosen_parts = [columns(part, pick) for part, pick in zip(parts, picked, strict=True)]
        intervals = simultaneous(chosen_parts, config.confidence)
        counts = [part.images for part in parts]
        for part, pick, named, bounds, images in zip(chosen_parts, picked, names, intervals, counts, strict=True):
            for i, mean, (low, high) in zip(pick, part.means.tolist(), bounds.tolist(), strict=True):
                differences.append(_Difference(*named[i], mean, (low, high), images[i]))
    return differences


def _columns(
    config: ChampionConfig, instances: Instances, reference: Mapping[str, np.ndarray], prefix: str, chosen: set[str]
) -> tuple[Float[np.ndarray, "n k"], list[tuple[str, str]]]:
    """Differences per instance of all sets in one column per prompt and band; NaN outside the band."""
    of_area = [bands(area) for area in instances.table["area"].tolist()]
    values, names = [], []
    for band in (band for band in ("", *BANDS) if band in chosen):
        inside = np.array([not band or band in inside for inside in of_area])
        for prompt in config.prompts:
            key = f"{prompt}_iou"
            values.append(np.where(inside, instances.table[key] - reference[key], np.nan))
            names.append(("_".join(filter(None, (f"{prefix}{prompt}_miou", band))), band))
    return np.stack(values, axis=1), names


def _images(instances: Instances | None) -> int:
    """Images with instances of the first set."""
    if instances is None:
        return 0
    first = instances.table["set"] == instances.table["set"][0]
    return len(np.unique(instances.table["image_id"][first]))
