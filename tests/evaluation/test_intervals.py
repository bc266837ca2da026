"""Intervals and tests against SciPy, closed forms, and a small coverage simulation."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from sirius_rec.errors import DataError
from sirius_rec.evaluation.intervals import GroupBootstrap, bootstrap_mean, holm, paired_test, sign_flip_p


def test_rows_match_the_normal_interval_and_scipy():
    values = np.random.default_rng(1).normal(3, 2, size=3_000)
    got = bootstrap_mean(values, resamples=4_000)
    half = 1.959964 * values.std(ddof=1) / np.sqrt(len(values))
    assert got.mean == pytest.approx(values.mean())
    assert (got.low, got.high) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.05 * half)
    theirs = stats.bootstrap((values,), np.mean, n_resamples=4_000, method="percentile", rng=3, batch=200)
    interval = theirs.confidence_interval
    assert (got.low, got.high) == pytest.approx((interval.low, interval.high), abs=0.06 * half)


def test_groups_widen_the_interval_as_the_cluster_formula_says():
    # 400 users of 5 equal rows: the variance of the mean is that of 400 independent values, sqrt(5) times the naive sd
    per_user = np.random.default_rng(2).normal(size=400)
    values, users = np.repeat(per_user, 5), np.repeat(np.arange(400), 5)
    grouped, rows = bootstrap_mean(values, users), bootstrap_mean(values)
    assert (grouped.high - grouped.low) / (rows.high - rows.low) == pytest.approx(np.sqrt(5), rel=0.08)


def test_uneven_groups_match_a_naive_bootstrap():
    rng = np.random.default_rng(3)
    users = rng.integers(0, 30, size=200)
    values = rng.normal(size=200) + users / 10
    parts = [values[users == user] for user in np.unique(users)]
    draws = [np.concatenate([parts[i] for i in rng.integers(0, len(parts), len(parts))]).mean() for _ in range(4_000)]
    got = bootstrap_mean(values, [f"u{user}" for user in users], resamples=4_000)
    width = np.subtract(*np.quantile(draws, [0.975, 0.025]))
    assert (got.low, got.high) == pytest.approx(tuple(np.quantile(draws, [0.025, 0.975])), abs=0.06 * width)


def test_coverage_of_the_grouped_interval():
    rng, hits = np.random.default_rng(4), 0
    users = np.repeat(np.arange(60), 4)
    for trial in range(200):
        values = np.repeat(rng.normal(size=60), 4) + rng.normal(size=240)
        got = bootstrap_mean(values, users, resamples=400, seed=trial)
        hits += got.low <= 0 <= got.high
    assert 0.89 <= hits / 200 <= 0.985


def test_interval_over_seeds_by_hand():
    """Two seeds and two users, hits ((1, 0), (0, 0)) + constants: each part by hand, quantiles from a table.

    Seed means 1/2 and 0: variance 1/8, over 2 seeds 1/16. User means over seeds 1/2 and 0: the same. t of one degree of
    freedom at 97.5 % is 12.706.
    """
    got = bootstrap_mean([[1.0, 0.0], [0.0, 0.0]])
    assert got.mean == 0.25
    assert got.high - got.mean == pytest.approx(12.7062 * np.sqrt(1 / 16 + 1 / 16), rel=1e-4)
    assert got.mean - got.low == pytest.approx(got.high - got.mean)
    narrower = bootstrap_mean([[1.0, 0.0], [0.0, 0.0]], level=0.5)  # its t is 1
    assert narrower.high - narrower.mean == pytest.approx(np.sqrt(1 / 8))


def test_interval_over_seeds_has_the_t_intervals_as_limits():
    """Seeds that agree leave the t interval over users; users that agree leave the t interval over seeds."""
    rng = np.random.default_rng(10)
    per_user = rng.normal(size=40)
    users = bootstrap_mean(np.tile(per_user, (3, 1)))
    theirs = stats.ttest_1samp(per_user, 0).confidence_interval()
    assert (users.low, users.high) == pytest.approx((theirs.low, theirs.high))
    per_seed = rng.normal(size=4)
    seeds = bootstrap_mean(np.repeat(per_seed[:, None], 40, axis=1))
    theirs = stats.ttest_1samp(per_seed, 0).confidence_interval()
    assert (seeds.low, seeds.high) == pytest.approx((theirs.low, theirs.high))


def test_users_of_uneven_size_have_the_linearised_standard_error():
    """Against the sandwich estimate of a regression on a constant, clustered by user (statsmodels' formula)."""
    rng = np.random.default_rng(11)
    users = rng.integers(0, 12, size=90)
    row = rng.normal(size=90) + users / 6
    got = bootstrap_mean(np.stack([row, row]), users)
    scores = np.array([(row[users == user] - row.mean()).sum() for user in range(12)])
    error = np.sqrt(12 / 11 * (scores**2).sum()) / 90
    assert got.high - got.mean == pytest.approx(stats.t.ppf(0.975, 11) * error)


def test_p_over_seeds_is_where_its_interval_reaches_zero():
    rng = np.random.default_rng(12)
    a = rng.normal(0.5, 1, size=(3, 50)) + rng.normal(0, 0.2, size=(3, 1))
    got = paired_test(a, np.zeros((3, 50)), flips=500)
    assert got.p > got.p_these_seeds  # the seeds' part is what sign flips do not see
    reaching = paired_test(a, np.zeros((3, 50)), level=1 - got.p, flips=500)
    assert reaching.low == pytest.approx(0, abs=1e-9)
    alone = paired_test(a[0], np.zeros(50), flips=500)
    assert alone.p == alone.p_these_seeds


@pytest.mark.slow
@pytest.mark.parametrize(("seeds", "spread"), [(3, 0.0), (3, 1.0), (3, 2.0), (3, 4.0), (2, 4.0)])
def test_wrong_verdicts_over_few_seeds(seeds, spread):
    """No more than 5 % of intervals miss the truth, however much seeds differ (spread times the users' error).

    60 users, 800 trials: 7.3 % would be three standard errors too many. Satterthwaite's degrees of freedom give 12 %
    with two seeds and a spread of 4, a percentile bootstrap more than 30 %.
    """
    rng, users, trials, wrong = np.random.default_rng([13, seeds, int(spread)]), 60, 800, 0
    zeros = np.zeros((seeds, users))
    for _ in range(trials):
        user = rng.normal(size=users)
        own = rng.normal(size=(seeds, users)) * 0.5  # what one seed gets right and another does not
        seed = rng.normal(size=(seeds, 1)) * spread / np.sqrt(users)
        wrong += paired_test(user + own + seed, zeros, flips=99).p < 0.05
    assert wrong / trials < 0.073


def test_seeds_that_agree_cost_nothing():
    """A difference of 3.6 standard errors is found in about 95 % of trials, as with users alone."""
    rng, found = np.random.default_rng(14), 0
    for _ in range(300):
        user = rng.normal(3.6 / np.sqrt(60), 1, size=60)
        found += bootstrap_mean(np.tile(user, (3, 1))).low > 0
    assert found / 300 > 0.9


@pytest.mark.parametrize("hits, users", [(0, 70), (1, 70), (0, 2), (1, 9)])
def test_a_share_at_an_end_has_the_exact_binomial_limit(hits, users):
    """Clopper and Pearson's by SciPy, a user one draw; rows of a user add nothing, a second seed neither."""
    exact = stats.binomtest(hits * users, users).proportion_ci(0.95, method="exact")
    plan = GroupBootstrap(2 * users, np.repeat(np.arange(users), 2))
    for seeds in (1, 3):
        values = np.full((seeds, 2 * users), float(hits))
        found = plan.of_share(plan.over_seeds(values), values)
        assert (found.mean, found.low, found.high) == pytest.approx((hits, exact.low, exact.high))


@pytest.mark.parametrize("seeds", [1, 3])
def test_equal_hits_leave_the_difference_as_open_as_so_many_users_do(seeds):
    """Users in whom only one method hits are a share of which none was seen, on either side: SciPy's limit of it."""
    hits, users = np.tile([1.0, 0.0, 0.0], (seeds, 20)), np.repeat(np.arange(20), 3)
    exact = stats.binomtest(0, 20).proportion_ci(0.95, method="exact").high
    test = paired_test(hits, hits, users)
    assert (test.difference, test.low, test.high, test.p) == pytest.approx((0, -exact, exact, 1))
    one_apart = hits.copy()
    one_apart[0, 0] = 0
    assert paired_test(hits, one_apart, users).high < exact  # what differs is resampled, as ever
    nats = paired_test(2 * hits, 2 * hits, users)  # no share: nothing bounds it
    assert (nats.low, nats.high) == (0, 0)
    assert np.isnan(paired_test(hits, hits, ["u"] * 60).low)


def test_a_share_inside_keeps_its_interval_within_0_and_1():
    values = np.zeros((2, 40))
    values[0, 0] = 1
    plan = GroupBootstrap(40)
    made = plan.over_seeds(values)
    found = plan.of_share(made, values)
    assert made.low < 0 and (found.low, found.high) == (0.0, made.high)
    constant = np.full((1, 40), 0.5)  # not at an end: no limit is known, and the interval stays what it is
    assert plan.of_share(plan.over_seeds(constant), constant).high == 0.5
    # one user of 6 rows and six of one: as good as 12² / (36 + 6) users
    uneven = GroupBootstrap(12, [0] * 6 + list(range(1, 7)))
    none = uneven.of_share(uneven.over_seeds(np.zeros((1, 12))), np.zeros((1, 12)))
    assert none.high == pytest.approx(1 - 0.025 ** (42 / 144))
    one_user = GroupBootstrap(3, ["u"] * 3)
    assert np.isnan(one_user.of_share(one_user.over_seeds(np.zeros((1, 3))), np.zeros((1, 3))).high)


def test_blocks_and_series_do_not_change_the_draws(monkeypatch):
    values = np.random.default_rng(5).normal(size=(3, 40))
    whole = GroupBootstrap(40, resamples=300).intervals(values)
    monkeypatch.setattr("sirius_rec.evaluation.intervals._BLOCK", 100)
    parts = [GroupBootstrap(40, resamples=300).intervals(row)[0] for row in values]
    for one, other in zip(whole, parts, strict=True):
        assert (one.low, one.high) == pytest.approx((other.low, other.high), rel=1e-12)


def test_same_seed_same_numbers():
    values = np.random.default_rng(6).normal(size=500)
    assert bootstrap_mean(values, seed=9) == bootstrap_mean(values, seed=9)
    assert bootstrap_mean(values, seed=9) != bootstrap_mean(values, seed=10)


def test_one_group_has_no_interval():
    got = bootstrap_mean([1.0, 2.0], ["u", "u"])
    assert got.mean == 1.5 and np.isnan(got.low) and np.isnan(got.high)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: bootstrap_mean([1.0, np.nan]), "row 1 is nan"),
        (lambda: bootstrap_mean([]), "no rows"),
        (lambda: bootstrap_mean([1.0, 2.0], [1]), "1 group ids for 2 rows"),
        (lambda: bootstrap_mean([1.0, 2.0], level=95), "level: 95"),
        (lambda: paired_test([1.0], [1.0, 2.0]), "same rows"),
        (lambda: holm([0.5, 1.2]), "must lie in 0"),
    ],
)
def test_bad_input(call, message):
    with pytest.raises(DataError, match=message):
        call()


@given(st.lists(st.integers(-5, 5), min_size=1, max_size=7))
def test_exact_p_is_the_enumeration(sums):
    totals = [abs(np.dot(signs, sums)) for signs in itertools.product((-1, 1), repeat=len(sums))]
    assert sign_flip_p(np.array(sums, float)) == np.mean(np.array(totals) >= abs(sum(sums)))


def test_paired_p_matches_scipy_exact_and_sampled():
    rng = np.random.default_rng(7)
    a, b = rng.normal(0.5, 1, size=10), rng.normal(size=10)
    exact = stats.permutation_test(
        (a, b), lambda x, y, axis: np.mean(x - y, axis=axis), permutation_type="samples", vectorized=True
    )
    assert paired_test(a, b).p == pytest.approx(exact.pvalue)
    a, b = rng.normal(0.2, 1, size=80), rng.normal(size=80)
    t = stats.ttest_rel(a, b)
    got = paired_test(a, b)
    assert got.difference == pytest.approx((a - b).mean())
    assert got.p == pytest.approx(t.pvalue, abs=0.02)


def test_flips_are_of_whole_users():
    # one user with 50 equal wins is one coin: p = 1 with the user flipped whole, tiny with rows flipped
    a, b = np.ones(50), np.zeros(50)
    assert paired_test(a, b, ["u"] * 50).p == 1.0
    assert paired_test(a, b).p == pytest.approx(1 / 10_001)


def test_p_is_uniform_without_an_effect():
    rng = np.random.default_rng(8)
    p = [sign_flip_p(rng.normal(size=30), flips=500, seed=i) for i in range(300)]
    assert stats.kstest(p, "uniform").pvalue > 0.01


def test_holm_by_hand():
    # sorted 0.005, 0.011, 0.02, 0.04 times 4, 3, 2, 1 = 0.02, 0.033, 0.04, 0.04
    assert holm([0.04, 0.005, 0.02, 0.011]) == pytest.approx([0.04, 0.02, 0.04, 0.033])
    assert holm([0.6, 0.7]) == [1.0, 1.0]
    assert holm([]) == []


def test_flips_are_pinned() -> None:
    """The same p on any machine: 13 users leave three bits of a second byte unused, 999 flips are an odd number."""
    sums = np.array([3.0, -1, 2, 2, -2, 1, 4, -3, 1, 1, -1, 2, 1])
    assert sign_flip_p(sums, flips=999, seed=0) == 0.251
    exact = np.mean(np.abs(np.array(list(itertools.product((-1, 1), repeat=13))) @ sums) >= sums.sum())
    assert sign_flip_p(sums, flips=50_000, seed=1) == pytest.approx(exact, abs=0.01)


def test_a_difference_far_below_its_error_has_p_one() -> None:
    a = np.array([[1.0, -1.0] * 20, [1.0, -1.0 + 1e-14] * 20])
    assert paired_test(a, np.zeros((2, 40)), flips=99).p == pytest.approx(1, abs=1e-9)


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_row_without_a_user_is_a_group_of_its_own(missing: float | None) -> None:
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    users = ["u", missing, "v", missing, "u"] if missing is None else [1.0, missing, 2.0, missing, 1.0]
    assert GroupBootstrap(5, users).n_groups == 4
    alone = bootstrap_mean(values, groups=["u", "a", "v", "b", "u"])
    found = bootstrap_mean(values, groups=users)
    assert found.mean == alone.mean and (found.high - found.low) == pytest.approx(alone.high - alone.low, abs=0.1)


def test_a_share_of_none_is_no_point_where_it_is_said_to_be_one() -> None:
    assert bootstrap_mean(np.zeros(50)).high == 0.0
    assert bootstrap_mean(np.zeros(50), share=True).high == pytest.approx(1 - 0.025 ** (1 / 50))


def test_numbers_and_texts_are_users_as_they_are() -> None:
    assert GroupBootstrap(5, np.array([1, 1.0, None, "1", "a"], dtype=object)).n_groups == 4
    values, users = np.random.default_rng(0).normal(size=6), ["c", "a", "c", "b", "a", "d"]
    assert bootstrap_mean(values, np.array(users)) == bootstrap_mean(values, np.array(users, dtype=object))
