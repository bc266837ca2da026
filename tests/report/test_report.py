"""The page is whole, self-contained, escaped, and the same twice; figures carry what they promise."""

from __future__ import annotations

import copy
import itertools
import re
from html.parser import HTMLParser

import pytest

from sirius_rec.diagnostics.curves import diagnose
from sirius_rec.errors import DataError
from sirius_rec.evaluation.results import ALL_METRICS
from sirius_rec.report.page import write_report
from sirius_rec.report.plots import PANELS, _spread, all_figures, colours_of, curve_figure, dot_figure

SLATES = "test-uniform-20-s0"


def summary(method, label, hr, seeds=(0, 1), slates=SLATES, checkpoint="last"):
    row = {"method": method, "label": label, "seeds": list(seeds), "slates": slates, "checkpoint": checkpoint}
    row |= {"n": 1234, "chance": 0.05}
    for metric in ALL_METRICS:
        present = metric not in ("valid_ratio", "hr@1_generated")
        row |= {metric: hr if present else None, f"{metric}_low": hr - 0.02 if present else None}
        row |= {f"{metric}_high": hr + 0.02 if present else None}
        row |= {f"{metric}_seed_sd": 0.003 if len(seeds) > 1 else None}
    return row


def curve(start, slope):
    return [
        {"epoch": epoch, "step": epoch, "hr@1": start - 0.01 * epoch, "reward_margin": slope * epoch, "misordered": 0.1}
        for epoch in range(3)
    ]


@pytest.fixture
def results():
    test = {"slates": SLATES, "checkpoint": "last", "metric": "hr@1", "low": -0.021, "high": -0.003}
    return {
        "format": 1, "baseline": "sft_continued", "config": {"name": "A <b>run</b> & co"},
        "environment": {"python": "3.11"}, "data": {"name": "toy", "slates": {SLATES: {"fingerprint": "abc123"}}},
        "rows": [],
        "summary": [
            summary("sft_continued", "SFT continued", 0.40), summary("dpo", "DPO", 0.45),
            summary("dpo_sirius", "DPO + SIRIUS", 0.44), summary("popularity", "popularity", 0.18, seeds=(0,)),
        ],
        "paired": [
            {"method": "dpo", "against": "sft_continued", "difference": -0.012, "p": 1e-5, "p_holm": 2e-5, **test},
            {"method": "dpo_sirius", "against": "dpo", "difference": -0.012, "p": 0.2, "p_holm": 0.4, **test},
        ],
        "curves": {
            "dpo": {"0": curve(0.45, 1.0), "1": curve(0.46, 1.2)}, "dpo_sirius": {"0": curve(0.44, 0.5)},
            "sft": {"0": [{"epoch": 1, "hr@1": 0.3}, {"epoch": 2, "hr@1": 0.4}]},
        },
        "notes": ["a note"],
    }  # fmt: skip


class _Page(HTMLParser):
    def __init__(self):
        super().__init__()
        self.ids, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in ("meta", "br", "link", "path", "use", "rect"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("path", "use", "rect"):
            assert self.open.pop() == tag


def test_page(results, tmp_path):
    path = write_report(results, tmp_path, diagnose(results))
    text = path.read_text(encoding="utf-8")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(["']?http""", text)
    assert "A &lt;b&gt;run&lt;/b&gt; &amp; co" in text
    for words in ("0.450", "[0.430, 0.470]", "−0.012", "[−0.021, −0.003]", "&lt; 0.001", "worse", "abc123", "a note"):
        assert words in text, words
    for words in ("no clear difference", "20 candidates, uniform", "True reward", "margin rose while HR@1 fell"):
        assert words in text, words
    assert "Valid ratio" not in text
    # one of the two tests is decided; the fall of HR@1 has an interval off zero for dpo (two seeds) only
    assert (text.count('class="text decided"'), text.count('class="verdict warn"')) == (1, 1)
    names = {entry.name for entry in (tmp_path / "figures").iterdir()}
    assert {"reward_margin.png", "reward_margin.svg", "hr_1.png", "misordered.svg", "sft_hr_1.svg"} <= names
    assert not any(name.startswith("true_reward") for name in names)


def test_untrained_margins_raise_no_alarm(results, tmp_path):
    results["objectives"] = {"dpo": {"reward": "simpo_no_ln", "comparison": "none"}}
    text = write_report(results, tmp_path, diagnose(results)).read_text(encoding="utf-8")
    assert "no margin is trained" in text and 'class="verdict warn"' not in text


def test_misordered_counts_all_negatives(results):
    """`objectives.evidence` counts sampled and unsampled negatives alike."""
    (panel,) = [panel for panel in PANELS if panel.key == "misordered"]
    assert panel.title == "Misordered pairs" and "all negatives of the slate, sampled or not" in panel.reading


def test_same_results_same_files(results, tmp_path):
    for name in ("a", "b"):
        write_report(copy.deepcopy(results), tmp_path / name)
    for one in sorted((tmp_path / "a").rglob("*.*")):
        assert one.read_bytes() == (tmp_path / "b" / one.relative_to(tmp_path / "a")).read_bytes(), one.name


def test_without_curves_paired_tests_or_intervals(results, tmp_path):
    bare = summary("dpo", "DPO", 0.4, seeds=(0,)) | {"hr@1_low": None, "hr@1_high": None}
    text = write_report(results | {"curves": {}, "paired": [], "summary": [bare]}, tmp_path).read_text(encoding="utf-8")
    assert "Over epochs" not in text and "Paired tests" not in text and "0.400" in text


def test_a_small_p_does_not_outvote_an_interval_over_seeds(results, tmp_path):
    results["paired"][0] |= {"low": -0.03, "high": 0.01}
    assert "on these seeds only</td>" in write_report(results, tmp_path).read_text(encoding="utf-8")


def test_floors_stand_in_every_checkpoint_of_their_slates(results, tmp_path):
    results["summary"].append(summary("dpo", "DPO", 0.43, checkpoint="best"))
    text = write_report(results, tmp_path).read_text(encoding="utf-8")
    assert text.count('<tr class="floor">') == 4  # two checkpoints, ranking and beyond


def test_no_scores(tmp_path):
    with pytest.raises(DataError, match="no scores"):
        write_report({"summary": []}, tmp_path)
    assert not list(tmp_path.iterdir())


def test_base_and_sirius_share_a_colour():
    colours = colours_of(["dpo", "dpo_sirius", "simpo", "sft", "sft_continued"])
    assert colours["dpo"] == colours["dpo_sirius"] != colours["simpo"]
    assert colours["sft"] == colours["sft_continued"]


def test_curve_figure_draws_seed_means(results):
    figure = curve_figure({"dpo": results["curves"]["dpo"]}, PANELS[0], {"dpo": "DPO"})
    (line,) = figure.axes[0].lines
    assert line.get_ydata().tolist() == pytest.approx([0, 1.1, 2.2])
    assert [text.get_text() for text in figure.axes[0].texts] == ["DPO"]
    assert curve_figure(results["curves"], PANELS[2], {}) is None
    assert [name for name, *_ in all_figures(results)] == ["reward_margin", "hr_1", "misordered", "sft_hr_1"]


def test_dot_figure_orders_methods_and_marks_floors(results):
    axes = dot_figure(results["summary"]).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["SFT continued", "DPO + SIRIUS", "DPO"]
    assert 0.18 in [line.get_xdata()[0] for line in axes.lines]


def test_spread_keeps_order_gap_and_bounds():
    placed = _spread([0.5, 0.5, 0.51, 0.99, 1.0], 0.1, 0.0, 1.0)
    ordered = sorted(placed)
    assert placed[0] < placed[1] < placed[2] < placed[3] < placed[4]
    assert all(b - a >= 0.1 - 1e-9 for a, b in itertools.pairwise(ordered))
    assert ordered[0] >= 0 and ordered[-1] <= 1 + 1e-9
    assert _spread([0.2, 0.8], 0.1, 0, 1) == [0.2, 0.8]
