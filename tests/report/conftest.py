"""A small made-up run with everything a page can show, and one that lies in files."""

from __future__ import annotations

import polars as pl
import pytest

from sirius_rec.diagnostics.curves import diagnose
from sirius_rec.diagnostics.trajectory import golden_over_seeds
from sirius_rec.evaluation.results import ALL_METRICS
from sirius_rec.evaluation.tables import ScoreTable
from sirius_rec.report.page import write_report
from sirius_rec.report.reported_run import ReportedRun

SLATES = "test-uniform-20-s0"


def _facts(role="arm", base=None, comparison="pairwise"):
    return {"role": role, "random": role != "trivial", "base": base, "comparison": comparison,
            "language_model": role in ("sft", "arm")}  # fmt: skip


FACTS = {
    "random": _facts("trivial"), "popularity": _facts("trivial"), "sft": _facts("sft"), "dpo": _facts(),
    "dpo_sirius": _facts(base="dpo"), "simpo": _facts(), "sft_continued": _facts(comparison="none"),
    "morec": _facts("baseline"),
}  # fmt: skip


@pytest.fixture
def facts():
    """What the methods of these tests are."""
    return FACTS


def summary(method, label, hr, seeds=(0, 1), slates=SLATES, checkpoint="last"):
    row = {"method": method, "label": label, "seeds": list(seeds), "slates": slates, "checkpoint": checkpoint}
    row["role"] = FACTS[method]["role"]
    row |= {"n": 1234, "chance": 0.05}
    for metric in ALL_METRICS:
        present = metric not in ("valid_ratio", "hr@1_generated")
        row |= {metric: hr if present else None, f"{metric}_low": hr - 0.02 if present else None}
        row |= {f"{metric}_high": hr + 0.02 if present else None}
        row |= {f"{metric}_seed_sd": 0.003 if len(seeds) > 1 else None}
    return row


def curve(start, slope, epochs=5):
    return [
        {
            "epoch": epoch, "step": 10 * epoch, "hr@1": start - 0.01 * epoch, "reward_margin": slope * epoch,
            "misordered": 0.1, "insensitive@0.1": 0.02 * epoch, "insensitive@0.5": 0.05 * epoch,
            "distance": 0.1 * epoch, "kl": 0.01 * epoch**2,
        }
        for epoch in range(epochs)
    ]  # fmt: skip


@pytest.fixture
def make_summary():
    return summary


def _results():
    test = {
        "slates": SLATES,
        "checkpoint": "last",
        "metric": "hr@1",
        "low": -0.021,
        "high": -0.003,
        "one_seed": False,
        "seeded": True,
    }
    return {
        "format": 3, "methods": FACTS, "baseline": "sft_continued", "config": {"name": "A <b>run</b> & co"},
        "environment": {"versions": {"python": "3.11", "sirius-rec": "9.8.7"}},
        "data": {"name": "toy", "fingerprint": "f00d" * 16, "slates": {SLATES: {"fingerprint": "abc123" * 10}}},
        "rows": [],
        "summary": [
            summary("sft_continued", "SFT continued", 0.40), summary("dpo", "DPO", 0.45),
            summary("dpo_sirius", "DPO + SIRIUS", 0.44), summary("popularity", "popularity", 0.18, seeds=(0,)),
        ],
        "paired": [
            {"method": "dpo", "against": "sft_continued", "difference": -0.012, "p": 1e-5, "p_holm": 2e-5,
             "p_holm_these_seeds": 2e-5, **test, "against_base": False},
            {"method": "dpo_sirius", "against": "dpo", "difference": -0.012, "p": 0.2, "p_holm": 0.4,
             "p_holm_these_seeds": 0.4, **test, "against_base": True},
        ],
        "curves": {
            "dpo": {"0": curve(0.45, 1.0), "1": curve(0.46, 1.2)}, "dpo_sirius": {"0": curve(0.44, 0.5)},
            "sft": {"0": [{"epoch": 1, "hr@1": 0.3}, {"epoch": 2, "hr@1": 0.4}]},
        },
        "notes": ["a note"],
    }  # fmt: skip


def _diagnostics(results):
    """Onset of DPO at step 20, none of DPO + SIRIUS; fits of both; the probe of one."""
    onset = {"peak_step": 10, "fall": 0.01, "p": 0.02, "margin_rise": 1.1, "looks": 5}
    influence = {
        "slope": 0.05, "slope_low": -0.3, "slope_high": 0.5, "spearman": 0.7, "n": 36, "examples": 2, "moved_i": 0.5,
        "regions": [{"n": 4, "measured": 0.03, "predicted": 0.04}],
        "unsaturated": {"n": 20, "slope": 0.42, "slope_low": 0.3, "slope_high": 0.5},
        "saturated": {"n": 16, "slope": -0.1, "slope_low": None, "slope_high": None},
    }  # fmt: skip
    fits = {method: golden_over_seeds(results["curves"][method]).as_dict() for method in ("dpo", "dpo_sirius")}
    return diagnose(results) | {
        "onset": {
            "dpo": {"all": {"step": 20, **onset}, "seeds": {"0": {"step": None, **onset}}},
            "dpo_sirius": {"all": {"step": None, **onset}, "seeds": {"0": {"step": None, **onset}}},
        },
        "golden_fit": fits,
        "influence": {"dpo": influence},
    }


def _explorer():
    """Two methods, four rows of two candidates: DPO fixes row 7 and breaks row 8, the other method changes nothing."""
    rows = [
        {"id": 7, "history": [0, 1], "slate": [2, 3], "target": 0, "scores": [[-2.0, -1.0], [-0.5, -1.0], [-2.0, -1.0]],
         "ranks": [2.0, 1.0, 2.0]},
        {"id": 8, "history": [1], "slate": [2, 3], "target": 1, "scores": [[-2.0, -1.0], [-2.0, -3.0], [-2.0, -1.0]],
         "ranks": [1.0, 2.0, 1.0]},
        {"id": 9, "history": [0], "slate": [3, 4], "target": 1, "scores": [[-2.0, -1.0], [-2.5, -1.0], [-2.0, -1.0]],
         "ranks": [1.0, 1.0, 1.0]},
    ]  # fmt: skip
    counts = {"fixed": 1, "broken": 1, "improved": 1, "worsened": 1, "unchanged": 1}
    return {
        "slates": SLATES, "checkpoint": "best", "seed": 0, "of": 3, "start": "SFT",
        "titles": ["Air", "Can", "</script><b>Blur", "Pulp", "Low"],
        "prompt": {"history": "Liked:", "candidates": "Candidates:", "answer": "Next:"},
        "methods": [{"key": "dpo", "label": "DPO", "counts": counts},
                    {"key": "simpo", "label": "SimPO", "counts": counts}],
        "rows": rows,
    }  # fmt: skip


def _generated():
    """Two methods, two rows; what they wrote could be mistaken for tags."""
    kinds = ("the target", "a title outside the slate")
    answers = [{"text": text, "kind": kind} for text, kind in zip(("Air", "<i>Can"), kinds, strict=True)]
    return {
        "slates": SLATES, "checkpoint": "best", "seed": 0,
        "methods": [{"label": label, "n": 200, "hits": 3, "valid": 5} for label in ("DPO", "SFT")],
        "rows": [{"id": n, "target": "Air", "history": ["Low", "Pulp"], "answers": answers} for n in (7, 8)],
    }  # fmt: skip


def _run(results, diagnostics, explorer):
    return ReportedRun("toy", results, diagnostics, None, "sirius audit toy/data", explorer, _generated())


@pytest.fixture
def results():
    return _results()


@pytest.fixture
def diagnostics(results):
    return _diagnostics(results)


@pytest.fixture
def explorer():
    return _explorer()


@pytest.fixture
def run(results, diagnostics, explorer):
    return _run(results, diagnostics, explorer)


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """report.html and figures/ of `run`. Not to be changed."""
    folder = tmp_path_factory.mktemp("written")
    made = _results()
    write_report([_run(made, _diagnostics(made), _explorer())], folder / "report.html", folder / "figures")
    return folder


@pytest.fixture
def make_table():
    """make("dpo", [[scores of row 0], …], seed=0) → a score table of candidates 0, 1, … in every row."""

    def make(method, scores, seed=0, slates="test-uniform-3-s0", checkpoint="best"):
        frame = pl.DataFrame(
            {
                "row_id": range(len(scores)),
                "candidates": [list(range(len(row))) for row in scores],
                "scores": [[float(value) for value in row] for row in scores],
            }
        )
        return ScoreTable(method, method.upper(), seed, slates, checkpoint, frame)

    return make
