"""The gate: noise neither promotes nor blocks, differences that are real do."""

import numpy as np
import pytest
from scipy.stats import bootstrap

from pipeline.ops.gate import ChampionConfig, PromoteConfig
from pipeline.promote import verdict
from pipeline.promote.bootstrap import resampled, simultaneous
from pipeline.promote.gate import Measured, judge
from pipeline.promote.instances import FP32, Instances
from tests.promote.evaluations import DATA, model, truth

GOOD = {"box_miou": 0.9, "click_miou": 0.8, "latency_ms": 10.0, "size_mib": 4.0}
TEACHER = {"box_miou": 0.9, "click_miou": 0.8}
METRICS = GOOD | {"trivial_box_miou": 0.6, "trivial_click_miou": 0.4}
CONFIG = PromoteConfig(champion=ChampionConfig(resamples=1000))


def measured(version, instances, **more):
    metrics = METRICS | {name: more.pop(name) for name in ("latency_ms", "size_mib") if name in more}
    return Measured(
        **{"version": version, "metrics": metrics, "teacher": TEACHER, "processor": "a", "instances": instances} | more
    )


def judged(world_seed, drop, **settings):
    rng = np.random.default_rng(world_seed)
    world = truth(rng)
    champion, challenger = model(rng, world), model(rng, world, drop)
    return judge(CONFIG, measured("2", challenger, **settings), measured("1", champion))


def failed(result):
    return [rule.name for rule in result.rules if not rule.holds]


@pytest.mark.parametrize("count", [200, pytest.param(1000, marks=pytest.mark.slow)])
def test_of_two_equal_models_at_most_5_percent_are_promoted_and_few_reported_as_worse(count):
    results = [judged(seed, 0.0) for seed in range(count)]
    promoted = sum(result.passed for result in results)
    dropped = sum(any(name.endswith("_vs_champion") for name in failed(result)) for result in results)

    assert promoted <= 0.05 * count
    assert dropped <= 0.1 * count  # each of the two families of rules errs in at most 5 %


@pytest.mark.parametrize("count", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_drop_of_one_point_on_400_instances_of_40_images_is_seen_about_every_second_time_and_never_promoted(count):
    results = [judged(seed, 0.01) for seed in range(count)]
    seen = sum(any(name.endswith("_vs_champion") for name in failed(result)) for result in results)

    assert seen >= 0.4 * count
    assert not any(result.passed for result in results)


def test_a_gain_of_three_points_is_promoted_and_the_verdict_says_by_how_much():
    result = judged(1, -0.03)
    assert result.passed
    (gain,) = (rule for rule in result.rules if rule.name == "gain")
    assert gain.interval[0] > 0
    assert "box_miou +0.0" in gain.note
    table = verdict.text(result).splitlines()
    assert table[0].split() == list(verdict.COLUMNS)
    assert any(line.startswith("box_miou_vs_champion") and line.endswith("yes") for line in table)


def test_a_real_drop_names_rule_margin_and_interval():
    result = judged(2, 0.05)
    assert "box_miou_vs_champion" in failed(result)
    assert "box_miou_vs_champion -0.0" in result.failures
    assert " misses -0.001 by 0.0" in result.failures
    (rule,) = (rule for rule in result.rules if rule.name == "box_miou_vs_champion")
    assert rule.interval[1] < -0.001
    assert rule.margin == pytest.approx(rule.interval[1] + 0.001)


@pytest.mark.parametrize("drop", [-0.03, -0.005, 0.0, 0.01, 0.05])
def test_a_margin_is_negative_where_a_rule_fails_and_only_there(drop):
    for rule in judged(12, drop).rules:
        assert rule.holds == (rule.margin >= 0), rule


def test_a_drop_for_small_objects_alone_is_refused():
    rng = np.random.default_rng(3)
    world = truth(rng)
    champion = model(rng, world)
    table = dict(champion.table)
    table["box_iou"] = table["box_iou"] - 0.1 * (table["area"] < 32**2) + 0.05 * (table["area"] > 32**2)
    result = judge(CONFIG, measured("2", Instances(DATA, table)), measured("1", champion))
    assert failed(result) == ["box_miou_small_vs_champion"]


def test_a_model_with_equal_masks_must_be_faster_or_smaller():
    same = model(np.random.default_rng(4), truth(np.random.default_rng(4)))
    champion = measured("1", same)
    assert failed(judge(CONFIG, measured("2", same), champion)) == ["gain"]
    assert judge(CONFIG, measured("2", same, latency_ms=7.0), champion).passed
    assert judge(CONFIG, measured("2", same, size_mib=2.0), champion).passed
    assert failed(judge(CONFIG, measured("2", same, latency_ms=9.9), champion)) == ["gain"]
    noisy = measured("2", same, latency_ms=9.0, latency_error_ms=0.9)
    assert failed(judge(CONFIG, noisy, champion)) == ["gain"]
    elsewhere = measured("2", same, latency_ms=7.0, processor="b")
    assert failed(judge(CONFIG, elsewhere, champion)) == ["gain"]


def test_a_faster_model_whose_accuracy_is_not_shown_to_be_as_good_is_refused():
    rng = np.random.default_rng(5)
    world = truth(rng, images=12, instances=40)
    result = judge(
        CONFIG,
        measured("2", model(rng, world, by_instance=0.2), latency_ms=2.0),
        measured("1", model(rng, world, by_instance=0.2)),
    )
    assert failed(result) == ["gain"]
    assert "is not shown to be within 0.01 of the champion" in result.failures


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"digest": "e" * 64}, "measured on other data (validation dddddddddddd by published)"),
        ({"protocol": "ours"}, "measured on other data"),
    ],
)
def test_other_data_is_refused(change, says):
    rng = np.random.default_rng(6)
    own = model(rng, truth(rng))
    other = Instances({"": DATA[""] | change}, own.table)
    result = judge(CONFIG, measured("2", other), measured("1", own))
    assert failed(result) == ["same_data"]
    assert says in result.failures


def test_versions_without_results_per_instance_or_on_other_instances_are_refused():
    rng = np.random.default_rng(7)
    own = model(rng, truth(rng))
    assert (
        "champion version 1 has no results per instance"
        in judge(CONFIG, measured("2", own), measured("1", None)).failures
    )
    fewer = Instances(DATA, {name: column[1:] for name, column in own.table.items()})
    assert "different instances" in judge(CONFIG, measured("2", fewer), measured("1", own)).failures


def test_few_images_can_show_nothing():
    rng = np.random.default_rng(8)
    world = truth(rng, images=4, instances=40)
    result = judge(CONFIG, measured("2", model(rng, world, -0.2)), measured("1", model(rng, world)))
    assert failed(result) == ["gain"]
    assert "4 validation images are too few" in result.failures


def test_without_a_champion_or_with_the_comparison_disabled_only_the_limits_count():
    rng = np.random.default_rng(9)
    own = model(rng, truth(rng))
    assert judge(CONFIG, measured("1", own), None).passed
    off = CONFIG.model_copy(update={"champion": None})
    assert judge(off, measured("2", None), measured("1", own)).passed


def test_int8_may_lose_little_of_its_own_fp32():
    rng = np.random.default_rng(10)
    own = model(rng, truth(rng))

    def int8(drop):
        fp32 = {f"{prompt}_iou{FP32}": own.table[f"{prompt}_iou"] + drop for prompt in ("box", "click")}
        return measured("1", Instances(DATA, own.table | fp32), precision="int8")

    assert judge(CONFIG, int8(0.01), None).passed
    refused = judge(CONFIG, int8(0.03), None)
    assert failed(refused) == ["box_miou_vs_fp32", "click_miou_vs_fp32"]
    assert "misses -0.02 by 0.01" in refused.failures
    alone = judge(CONFIG, measured("1", own, precision="int8"), None)
    assert failed(alone) == ["fp32"]
    assert "was not evaluated" in alone.failures
    assert judge(
        CONFIG.model_copy(update={"max_precision_drop": None}), measured("1", own, precision="int8"), None
    ).passed


def test_ceilings_are_those_of_the_target():
    config = PromoteConfig(targets={"gpu": {"max_latency_ms": 5.0, "max_size_mib": 3.0}}, max_latency_ms=20.0)
    own = measured("1", None)
    assert judge(config, own, None).passed
    assert failed(judge(config, measured("1", None, runtime="tensorrt"), None)) == ["latency_ms", "size_mib"]


def test_intervals_are_those_of_scipy_for_one_mean_with_one_instance_per_image():
    values = np.random.default_rng(11).gamma(2.0, size=60)
    part = resampled(values[:, None], np.arange(60), 4000, np.random.default_rng(0))
    ((low, high),) = simultaneous([part], 0.9)[0]
    theirs = bootstrap((values,), np.mean, confidence_level=0.9, method="BCa", rng=0).confidence_interval
    assert (low, high) == pytest.approx((theirs.low, theirs.high), abs=0.06)
    again = resampled(values[:, None], np.arange(60), 4000, np.random.default_rng(0))
    assert (again.deviations == part.deviations).all()


def test_simultaneous_intervals_cover_both_means_as_often_as_they_say():
    covered = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        images = np.repeat(np.arange(30), 8)
        values = np.repeat(rng.normal(0, 0.5, (30, 2)), 8, axis=0) + rng.normal(0, 1, (240, 2))
        bounds = simultaneous([resampled(values, images, 500, rng)], 0.9)[0]
        covered += bool(((bounds[:, 0] <= 0) & (bounds[:, 1] >= 0)).all())
    assert 165 <= covered <= 195
