"""The page is whole, self-contained, escaped, true to its results, and the same twice; bad input is one line."""

from __future__ import annotations

import copy
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from sirius_rec.errors import DataError
from sirius_rec.report.page import write_report
from sirius_rec.report.reported_run import ReportedRun

SLATES = "test-uniform-20-s0"
POPULARITY = "popularity\u00a0°"  # the mark of methods without a language model
VOID = ("meta", "br", "link", "input", "path", "use", "rect")


class _Page(HTMLParser):
    """Ids, links, headings and table cells; fails where tags are not nested."""

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.open, self.headings, self.tables = [], [], [], [], []

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.ids += [values["id"]] if "id" in values else []
        self.links += [value for key, value in attributes if key in ("src", "href", "xlink:href")]
        if tag not in VOID:
            self.open.append(tag)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append({"value": values.get("data-value"), "text": ""})
        elif re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))

    def handle_data(self, data):
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1]["text"] += data

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


def parsed(text):
    page = _Page()
    page.feed(text)
    assert page.open == []
    return page


def page_of(run, tmp_path, *others):
    return write_report([run, *others], tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def text(written):
    return (written / "report.html").read_text(encoding="utf-8")


def test_page(written, text):
    page = parsed(text)
    assert len(page.ids) == len(set(page.ids))
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert all(b - a <= 1 for a, b in zip(page.headings, page.headings[1:], strict=False))
    for words in ("A &lt;b&gt;run&lt;/b&gt; &amp; co", "0.450", "[0.430, 0.470]", "−0.012", "[−0.021, −0.003]", "worse",
                  "&lt; 0.001", "abc123", "a note", "no clear difference", "20 candidates, uniform", "True reward",
                  "onset: step 20 (HR@1 0.010 below its peak", "sirius audit toy/data", "9.8.7", "@unpublished",
                  "Mitigating Reward Hacking"):  # fmt: skip
        assert words in text, words
    assert "Valid ratio" not in text
    # one of the two tests is decided; one of the two methods has an onset
    assert (text.count('class="text decided"'), text.count('class="prose verdict warn"')) == (1, 1)
    assert "margin rose while HR@1 fell" not in text and "flagged" not in text
    assert text.count("Reward hacking was found in 1 of 2 methods tested: DPO at step 20.") == 2  # top and section
    assert (
        "moved p_ik by 0.42 (DPO) where p_ij is steeper than p_ik, and −0.10 (DPO) where p_ij is flatter than p_ik, of "
        "what Eq. 10 predicts, on 2 held-out slates"
    ) in text
    # the last epoch is 4: 0.02 · 4 of the triples for both methods
    assert "8.0 % (DPO) to 8.0 % (DPO + SIRIUS) of the triples; the paper reports more than 40 %" in text
    names = {entry.name for entry in (written / "figures").iterdir()}
    wanted = ["reward_margin", "hr_1", "misordered", "sft_hr_1", "margin_dpo", "golden_dpo", "insensitive_shares"]
    assert {f"{name}.{kind}" for name in [*wanted, "figure2", "figure5"] for kind in ("png", "svg")} <= names
    assert "hr_1_test_uniform_20_s0_last.png" in names  # what benchmarks/publish.py looks for
    assert not any(name.startswith("true_reward") for name in names)


def test_nothing_is_fetched(text):
    assert not re.search(r"""(src|href|action)=["']?(https?:)?//|@import|url\(["']?http|fetch\(|XMLHttp""", text)
    assert "default-src 'none'" in text


def test_numbers_are_those_of_the_results(results, text):
    page = parsed(text)
    shown = {row[0]["text"]: row for row in page.tables[0][1:]}
    heads = [cell["text"] for cell in page.tables[0][0]]
    assert heads == ["Method", "HR@1", "HR@5", "HR@10", "NDCG@5", "NDCG@10", "MRR", "SD of seeds"]
    assert [row[0]["text"] for row in page.tables[0][1:]] == ["DPO", "DPO + SIRIUS", "SFT continued", POPULARITY]
    labels = {row["method"]: row["label"] for row in results["summary"]} | {"popularity": POPULARITY}
    for row in results["summary"]:
        for cell, metric in zip(shown[labels[row["method"]]][1:], ("hr@1", "hr@5", "hr@10"), strict=False):
            assert float(cell["value"]) == row[metric]
            low, high = row[f"{metric}_low"], row[f"{metric}_high"]
            assert cell["text"] == f"{row[metric]:.3f}[{low:.3f}, {high:.3f}]"


def test_a_title_cannot_end_the_script(explorer, text):
    (found,) = re.findall(r'<script type="application/json" id="explorer-data">(.*?)</script>', text, re.DOTALL)
    assert json.loads(found) == [{"run": "toy", **explorer}]
    assert not set("<>&") & set(found)  # "<!--<script>" in a title would swallow the page up to the next "-->"


def test_a_tie_with_the_strongest_trivial_baseline_is_not_above_it(run, results, make_summary, tmp_path):
    results["summary"] = [
        make_summary("dpo", "DPO", 0.45), make_summary("dpo_sirius", "DPO + SIRIUS", 0.40),
        make_summary("popularity", "popularity", 0.40, seeds=(0,)),
    ]  # fmt: skip
    text = page_of(replace(run, results=results), tmp_path)
    said = "Highest trivial baseline: popularity\u00a0°, 0.400; "
    assert f"{said}trained methods whose value is not higher: DPO + SIRIUS." in text
    results["summary"][0]["hr@1"] = 0.40
    text = page_of(replace(run, results=results), tmp_path)
    assert f"{said}no trained method’s value is higher." in text


def test_rows_learned_from_stand_in_the_table_where_they_differ(run, results, tmp_path):
    def heads():
        return [cell["text"] for cell in parsed(page_of(replace(run, results=results), tmp_path)).tables[0][0]]

    results["methods"] = {key: facts | {"train_rows": 32} for key, facts in results["methods"].items()}
    assert "Train rows" not in heads()
    results["methods"]["popularity"] |= {"train_rows": 35_000}
    assert heads()[-1] == "Train rows"
    rows = parsed(page_of(replace(run, results=results), tmp_path)).tables[0][1:]
    assert {row[0]["text"]: row[-1]["text"] for row in rows}[POPULARITY] == "35,000"
    assert {row[-1]["text"] for row in rows} == {"32", "35,000"}


def test_a_valid_ratio_of_zero_is_explained_and_not_the_best(run, results, tmp_path):
    def beyond(*ratios):
        for row, ratio in zip(results["summary"], ratios, strict=False):
            row |= {"valid_ratio": ratio, "valid_ratio_low": ratio, "valid_ratio_high": ratio}
        text = page_of(replace(run, results=results), tmp_path)
        return text, text[text.index("Beyond ranking") : text.index("HR@1 with 95 % intervals")]

    text, table = beyond(0.0, 0.0, 0.0)
    assert "A valid ratio of 0 means that no greedy answer was" in text
    assert 'data-value="0.0"><b>0.000</b>' in table and 'data-value="0.0" class="best"' not in table
    text, table = beyond(0.0, 0.2, 0.0)
    assert "A low valid ratio means" in text and 'data-value="0.2" class="best"' in table
    text, _ = beyond(0.9, 0.8, 1.0)
    assert "valid ratio of 0" not in text and "low valid ratio" not in text


def test_methods_without_a_language_model_are_marked_where_others_have_one(run, results, tmp_path):
    results["methods"]["morec"] |= {"language_model": False}
    results["methods"]["dpo"] |= {"language_model": True}
    text = page_of(replace(run, results=results), tmp_path)
    assert POPULARITY in text and "DPO\u00a0°" not in text and "° marks methods" in text
    alone = {key: facts | {"language_model": False} for key, facts in results["methods"].items()}
    text = page_of(replace(run, results=results | {"methods": alone}), tmp_path)
    assert "\u00a0°" not in text and "No method here has a language model." in text


def test_generated_answers(text, run, tmp_path):
    page = text[text.index('-generated">\n') :]
    assert "… Low, Pulp →</small> Air" in page and "<b>&lt;i&gt;Can</b><small>a title outside the slate" in page
    assert "3 the target, 5 valid, of 200" in page and 'href="#r0-generated"' in text
    assert "Generated answers" not in page_of(replace(run, generated=None), tmp_path)


def test_the_audit(run, tmp_path):
    probe = {"name": "popularity", "kind": "baseline", "hr1": 0.2, "ci_low": 0.1, "ci_high": 0.3, "why": "as ever"}
    audit = {
        "verdict": "leak", "slates": SLATES, "rows": 1234, "notes": ["LEAKY on purpose"],
        "probes": [{**probe, "verdict": "clean"},
                     {**probe, "name": "position_marginal", "verdict": "leak", "hr1": None, "ci_low": None}],
    }  # fmt: skip
    text = page_of(replace(run, audit=audit), tmp_path)
    assert "Audit of the slates: leak." in text and "2 blind probes; leak: position marginal" in text
    assert "LEAKY on purpose" in text and "0.200" in text and "were not audited" not in text


def test_untrained_margins_raise_no_alarm(run, results, tmp_path):
    from sirius_rec.diagnostics.curves import diagnose

    results["methods"] = results["methods"] | {"dpo": results["methods"]["dpo"] | {"comparison": "none"}}
    text = page_of(replace(run, diagnostics=run.diagnostics | diagnose(results)), tmp_path)
    assert "No reward hacking was found in the one method tested" in text  # the other's
    assert "no margin is trained" in text and "prose verdict warn" not in text


def test_same_results_same_bytes(written, run, tmp_path):
    write_report([run], tmp_path / "report.html", tmp_path / "figures")
    for one in sorted(written.rglob("*.*")):
        assert one.read_bytes() == (tmp_path / one.relative_to(written)).read_bytes(), one.name


def test_without_curves_paired_tests_intervals_or_examples(results, make_summary, tmp_path):
    bare = make_summary("dpo", "DPO", 0.4, seeds=(0,)) | {"hr@1_low": None, "hr@1_high": None}
    results |= {"curves": {}, "paired": [], "summary": [bare]}
    text = page_of(ReportedRun("bare", results), tmp_path)
    parsed(text)
    assert "Over epochs" not in text and "Paired tests" not in text and "0.400" in text and "No examples" in text


def test_a_small_p_does_not_outvote_an_interval_over_seeds(run, results, tmp_path):
    results["paired"][0] |= {"low": -0.03, "high": 0.01}
    assert "on these seeds only</td>" in page_of(run, tmp_path)


def test_trivial_baselines_stand_in_every_checkpoint_of_their_slates(run, results, make_summary, tmp_path):
    results["summary"].append(make_summary("dpo", "DPO", 0.43, checkpoint="best"))
    # two checkpoints, ranking and beyond, and the paper's row of the insensitive shares
    assert page_of(run, tmp_path).count('<tr class="trivial">') == 5


def test_small_slates_stand_first(run, results, make_summary, tmp_path):
    results["summary"].append(make_summary("dpo", "DPO", 0.2, slates="test-uniform-100-s0"))
    headings = re.findall(r"<h2>Results on ([\w-]+)", page_of(run, tmp_path))
    assert headings == [SLATES, "test-uniform-100-s0"]


def test_runs_side_by_side(run, results, make_summary, tmp_path):
    other = copy.deepcopy(results)
    other["summary"] = [make_summary("dpo", "DPO", 0.31), make_summary("simpo", "SimPO", 0.2)]
    other["curves"], other["paired"] = {}, []
    page = parsed(page_of(run, tmp_path, ReportedRun("second", other)))
    assert len(page.ids) == len(set(page.ids))
    table = page.tables[0]
    assert [c["text"] for c in table[0]] == ["Method", "HR@1, toy", "HR@1, second", "NDCG@10, toy", "NDCG@10, second"]
    assert (
        page_of(run, tmp_path, ReportedRun("second", other)).count("The best trained method is") == 4
    )  # top, each run
    rows = {row[0]["text"]: [cell["text"][:5] for cell in row[1:3]] for row in table[1:]}
    assert rows["DPO"] == ["0.450", "0.310"] and rows["SimPO"] == ["–", "0.200"]
    assert rows["SFT continued"] == ["0.400", "–"]


def complaint(tmp_path, *runs):
    with pytest.raises(DataError) as raised:
        write_report(runs, tmp_path / "page.html")
    assert "\n" not in str(raised.value) and not list(tmp_path.iterdir())
    return str(raised.value)


def test_what_cannot_be_reported(run, results, tmp_path):
    def spoilt(**changes):
        return ReportedRun("toy", results | changes)

    assert complaint(tmp_path, spoilt(summary=[])) == (
        "report: toy: the results hold no scores; evaluate at least one method first"
    )
    nan = [*results["summary"][1:], results["summary"][0] | {"hr@1": None}]
    assert f"hr@1 of sft_continued on {SLATES} is not a number" in complaint(tmp_path, spoilt(summary=nan))
    short = {"dpo": {"0": results["curves"]["dpo"]["0"][:1]}}
    assert "toy: the curve of dpo, seed 0 has one epoch only" in complaint(tmp_path, spoilt(curves=short))
    holed = copy.deepcopy(results["curves"])
    holed["dpo"]["1"][2]["reward_margin"] = None
    said = complaint(tmp_path, spoilt(curves=holed))
    assert "curve of dpo, seed 1: reward_margin is not a number at epoch 2" in said


def test_what_cannot_be_compared(run, results, tmp_path):
    def other(**changes):
        changed = copy.deepcopy(results)
        changed["data"] |= changes
        return ReportedRun("other", changed)

    said = complaint(tmp_path, run, other(slates={SLATES: {"fingerprint": "00ff" * 10}}))
    assert said == (
        f"report: toy and other are over different slates ({SLATES} is abc123ab in the first, 00ff00ff in the second); "
        "report them apart"
    )
    assert "different data (fingerprints f00df00d and 12345678)" in complaint(
        tmp_path, run, other(fingerprint="1234567890")
    )
    assert "other does not say what data it is on" in complaint(tmp_path, run, other(fingerprint=None))
    assert "two runs are called toy" in complaint(tmp_path, run, run)
    elsewhere = other()
    for row in elsewhere.results["summary"]:
        row["slates"] = "test-uniform-100-s0"
    assert f"different slates ({SLATES}; test-uniform-100-s0)" in complaint(tmp_path, run, elsewhere)


def test_prompts_of_ones_own_are_shown_in_their_words(run):
    """Not as the mapping that the configuration holds."""
    from sirius_rec.report.sections import what_was_run

    own = {"history": "This user has watched:", "candidates": "Candidates:", "answer": None}
    for template, words in (("music", "music, history alone"), (own, "“This user has watched: …”, history alone")):
        config = {**run.results["config"], "prompts": {"template": template, "slate": False}}
        shown = ReportedRun("toy", {**run.results, "config": config})
        assert dict(what_was_run(shown))["Prompt"] == words
