"""Strict configuration: every problem at once, in one line, with the place, the value and the nearest valid name."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import yaml

from sirius_rec.config import Config
from sirius_rec.config_yaml import apply_overrides
from sirius_rec.data.sources import SOURCES
from sirius_rec.errors import ConfigError
from sirius_rec.recipes.configuration import load_config, parse_config


def problem(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse_config(yaml.safe_load(text), "c.yaml")
    message = str(caught.value)
    assert message.startswith("c.yaml: ") and "\n" not in message
    return message.removeprefix("c.yaml: ")


@pytest.mark.parametrize(
    ("text", "place", "near"),
    [
        ("sfft: {}", "sfft", "sft"),
        ("sft: {epoch: 1}", "sft.epoch", "sft.epochs"),
        ("data: {window: {max_histori: 3}}", "data.window.max_histori", "data.window.max_history"),
        ("backbone: {tiny: {layer: 3}}", "backbone.tiny.layer", "backbone.tiny.layers"),
        ("backbone: {pretrain: {batchsize: 3}}", "backbone.pretrain.batchsize", "backbone.pretrain.batch_size"),
        ("backbone: {name: org/model, lora: {rnk: 3}}", "backbone.lora.rnk", "backbone.lora.rank"),
        ("arms: [dpo, {loss: simpo, gama: 1}]", "arms.1.gama", "arms.1.gamma"),
        ("data: {slates: [{siz: 3}]}", "data.slates.0.siz", "data.slates.0.size"),
    ],
)
def test_unknown_keys_name_the_nearest(text: str, place: str, near: str) -> None:
    assert problem(text) == f"unknown key '{place}', did you mean '{near}'?"


def test_an_unknown_key_without_a_neighbour_lists_what_is_known() -> None:
    said = problem("backbone: {name: org/model, lora: {zzz: 1}}")
    assert said == "unknown key 'backbone.lora.zzz' (known: rank, alpha, dropout, targets, dora, rslora)"


def test_names_of_jobs_and_of_what_is_always_there_are_taken() -> None:
    """A job's name is its key and seed: an arm called `reference` took that of the reference cache, and lost it."""
    for key in ("reference", "pretrain", "sft", "popularity"):
        assert f"arms.0.name: '{key}' is taken: give the arm another name" in problem(
            f"arms: [{{loss: dpo, name: {key}}}]"
        )
        assert f"'{key}' is taken: give the method another name" in problem(f"methods: [{{method: ease, name: {key}}}]")


def test_all_problems_come_at_once() -> None:
    assert problem("sft: {epochs: -1}\nalign: {batch_size: many}\nfoo: 1\narms: [{los: dpo}, 5]").split("; ") == [
        "sft.epochs: must be at least 0, got -1",
        "align.batch_size: must be a whole number, got 'many'",
        "'arms.0.loss' is missing",
        "unknown key 'arms.0.los', did you mean 'arms.0.loss'?",
        "arms.1: must be a section of key: value lines, got 5",
        "unknown key 'foo' (known: plugins, name, seeds, data, prompts, backbone, training, sft, align, arms, methods, "
        "evaluation, compute, tune)",
    ]
    both = problem("seeds: [1, 1]\nprompts: {template: poetry}\narms: [dpo, dpo, {loss: simpo, gamma: -1}]")
    parts = ("seeds: a seed is duplicated", "arms: 'dpo' is duplicated", "prompts.template: ", "arms.2 (simpo): gamma")
    assert [part for part in parts if part not in both] == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sft: {epochs: true}", "sft.epochs: must be a whole number, got True"),
        ("sft: {epochs: '5'}", "sft.epochs: must be a whole number, got '5'"),
        ("sft: {epochs: 1.5}", "sft.epochs: must be a whole number, got 1.5"),
        ("sft: {learning_rate: true}", "sft.learning_rate: must be a number, got True"),
        ("sft: {learning_rate: fast}", "sft.learning_rate: must be a number, got 'fast'"),
        ("sft: {learning_rate: .nan}", "sft.learning_rate: must be a finite number, got nan"),
        ("sft: {learning_rate: 0}", "sft.learning_rate: must be greater than 0, got 0"),
        ("sft: {warmup: 1}", "sft.warmup: must be below 1, got 1"),
        ("sft: {gradient_checkpointing: 'yes'}", "sft.gradient_checkpointing: must be true or false, got 'yes'"),
        ("sft: 3", "sft: must be a section of key: value lines, got 3"),
        ("sft:", "sft: must be a section of key: value lines, got None"),
        ("seeds: 3", "seeds: must be a list, [a, b, …], got 3"),
        ("seeds: [-1]", "seeds.0: must be at least 0, got -1"),
        ("name: [1]", "name: must be text, got [1]"),
        ("data: {split: {kind: usr}}", "data.split.kind: must be 'user', 'time' or 'leave_last_out', got 'usr'"),
        ("data: {split: {ratios: [8, 2]}}", "data.split.ratios: needs at least 3 entries, got [8, 2]"),
        ("data: {limits: {trn: 3}}", "data.limits.trn: must be 'train', 'val' or 'test', got 'trn'"),
        ("data: {input: 3}", "data.input: must be text or a path, got 3"),
        ("arms: [{loss: dpo, negatives: 0}]", "arms.0.negatives: must be at least 1 or 'all', got 0"),
        ("arms: [{loss: dpo, negatives: few}]", "arms.0.negatives: must be a whole number or 'all', got 'few'"),
        ("align: {score_unsampled: -2}", "align.score_unsampled: must be at least 0 or 'all', got -2"),
        ("align: {epsilons: [0]}", "align.epsilons.0: must be greater than 0, got 0"),
        ("align: {epsilons: [0.1, 2.0]}", "align.epsilons.1: must be at most 1, got 2.0"),
        ("name: ../../x", "name: must be the name of one folder (it names runs/<name>), got '../../x'"),
        ("name: a\\b", "name: must be the name of one folder (it names runs/<name>), got 'a\\b'"),
        ("name: ..", "name: must be the name of one folder (it names runs/<name>), got '..'"),
        ("name: ''", "name: must be the name of one folder (it names runs/<name>), got ''"),
        ("align: {beta: 0}", "align.beta: must be greater than 0, got 0"),
        ("align: {gamma: -0.1}", "align.gamma: must be at least 0, got -0.1"),
    ],
)
def test_wrong_types_and_ranges(text: str, message: str) -> None:
    assert problem(text) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seeds: []", "seeds: at least one is needed"),
        ("seeds: [0, 1, 0]", "seeds: a seed is duplicated"),
        ("arms: [dpo, {loss: simpo, name: dpo}]", "arms: 'dpo' is duplicated: give one of them another name"),
        ("arms: [{loss: dpo, name: dpo-b2}]", "arms.0.name: 'dpo-b2' may hold letters, digits, _ and . only"),
        ("arms: [{loss: dpo, name: popularity}]", "arms.0.name: 'popularity' is taken: give the arm another name"),
        ("arms: [{loss: dpo, beta: 0}]", "arms.0 (dpo): beta must be positive, got 0.0"),
        ("arms: [{loss: simpo, beta: -1}]", "arms.0 (simpo): beta must be positive, got -1.0"),
        ("arms: [{loss: simpo, gamma: -1}]", "arms.0 (simpo): gamma must not be negative, got -1.0"),
        (
            "arms: [{loss: ipo, anchor: slate}]",
            "arms.0 (ipo): link 'squared' takes no anchor: use 'logistic' or 'hinge' or 'smoothed' or 'robust'",
        ),
        (
            "arms: [{loss: dpo, link: hinges}]",
            "arms.0 (dpo): unknown link 'hinges': choose one of logistic, hinge, squared, smoothed, robust, linear",
        ),
        (
            "arms: [{loss: robust_dpo, label_smoothing: 0.5}]",
            "arms.0 (robust_dpo): label_smoothing must be below 0.5, got 0.5: half of the labels would be wrong",
        ),
        (
            "arms: [dpo, reward_weighted_sft]",
            "arms.1 (reward_weighted_sft): rows of a data set carry no observed reward: "
            "train it with SiriusTrainer, on records with a 'reward'",
        ),
        (
            "data: {slates: [{size: 3}]}\narms: [softmax_dpo]",
            "arms.0 (softmax_dpo): 3 negatives, but a train slate of 3 has 2",
        ),
        (  # the policy's stand in the place of those of the slate, which steps are planned by
            "data: {slates: [{size: 3}]}\nprompts: {slate: false}\n"
            "arms: [{loss: softmax_dpo, negatives_from: on_policy}]",
            "arms.0 (softmax_dpo): 3 negatives, but a train slate of 3 has 2",
        ),
        (
            "data: {slates: [{splits: [val, test]}]}",
            "data.slates: exactly one entry must have 'train' among its splits, none does",
        ),
        (
            "data: {slates: [{size: 5}, {size: 6}]}",
            "data.slates: exactly one entry must have 'train' among its splits, 2 do",
        ),
        (
            "data: {window: {min_history: 5, max_history: 3}}",
            "data.window: min_history 5 is above max_history 3: lower it",
        ),
        (
            "backbone: {tiny: {hidden_size: 30, heads: 4}}",
            "backbone.tiny: hidden_size 30 is not a multiple of heads 4",
        ),
        (
            "backbone: {name: tiny, lora: {rank: 4}}",
            "backbone.lora: the tiny backbone is fully trained: remove lora, or name a pretrained backbone",
        ),
        ("data: {source: tabel}", "data.source: no source is called 'tabel', did you mean 'table'?"),
        (
            "data: {source: netflix}",
            f"data.source: no source is called 'netflix' (known: {', '.join(SOURCES)})",
        ),
        (
            "align: {batch_size: 32, micro_batch_size: 5}",
            "align: batch_size 32 is not a multiple of micro_batch_size 5",
        ),
        (
            "sft: {order: random, piece: 7}",
            "sft.order, sft.piece: are of targets: all, and targets: next reads rows as they are: leave them out, or "
            "set targets: all",
        ),
        *(
            (
                "prompts: {slate: false, template: {history: 'Liked:', answer: null}}\narms: []\n"
                f"methods: [{method}]",
                f"methods.0 ({key}): prompts.template.answer: null: behind {what} the answer looks like one more "
                f"title: name the line before the answer, or {fix}",
            )
            for method, key, what, fix in (
                ("tallrec", "tallrec", "the history the candidate that is asked about", "leave the method out"),
                ("tallrec_listwise", "tallrec_listwise", "a slate", "leave the method out"),
                ("{method: llara, options: {slate: true}}", "llara", "a slate", "leave the method's slate out"),
                ("{method: zero_shot, options: {slate: true}}", "zero_shot", "a slate", "leave the method's slate out"),
            )
        ),
        ("evaluation: {checkpoints: []}", "evaluation.checkpoints: at least one of best, last is needed"),
        (
            "evaluation: {baseline: sft_continues}",
            "evaluation.baseline: no method is called 'sft_continues', did you mean 'sft_continued'?",
        ),
    ],
)
def test_contradictions(text: str, message: str) -> None:
    assert problem(text) == message


def test_a_section_shared_by_an_alias_is_faulty_in_both_places() -> None:
    assert problem("sft: &stage {batch_size: 0}\nalign: *stage").split("; ") == [
        "sft.batch_size: must be at least 1, got 0",
        "align.batch_size: must be at least 1, got 0",
    ]


@pytest.mark.parametrize(
    "text",
    [
        # a default or a hole must not be blamed for contradicting the rest
        "data: {window: {max_histori: 20, min_history: 15}}",
        "data: {window: {max_history: many, min_history: 15}}",
        "data: {slates: [{size: many}]}\narms: [{loss: dpo, negatives: 30}]",
        "data: {slates: [3]}\narms: [{loss: dpo, negatives: 30}]",
        "data: {slates: [{size: 3}]}\narms: [{loss: softmax_dpo, negatives: few}]",
        "seeds: [x]",
        "evaluation: {checkpoints: [bst]}",
        "arms: [{loss: dpo, nam: mine}]\nevaluation: {baseline: mine}",
        "arms: [{loss: dpo, name: [1]}, dpo]",
        "arms: 5\nevaluation: {baseline: mine}",
        "backbone: {nam: org/model, lora: {}}",
        "sft: {batch_size: 5.5, micro_batch_size: 3}",
        "align: {score_unsampled: -2, batch_size: 30, epochs: 3}\nsft: {}",
        "data: {limits: {trn: 3}}",
    ],
)
def test_what_rests_on_a_faulty_value_is_not_a_problem_of_its_own(text: str) -> None:
    assert ";" not in problem(text)


def test_unknown_names_say_what_there_is() -> None:
    assert "unknown prompt template 'poetry': choose one of music, books" in problem("prompts: {template: poetry}")
    assert "arms.0 (dpoo): unknown loss 'dpoo', did you mean 'dpo'?" in problem("arms: [dpoo]")


def test_a_whole_slate_needs_no_count() -> None:
    raw = {"data": {"slates": [{"size": 2}]}, "arms": [{"loss": "softmax_dpo", "negatives": "all"}]}
    config = parse_config(raw, "c")
    assert config.objective(config.arms[0]).negatives == "all"


def test_align_options_reach_the_arms_they_belong_to() -> None:
    """β for all; γ for the SimPO family only, as γ = 0 in the DPO family; an arm's own value wins."""
    arms = ["dpo", "simpo", {"loss": "simpo", "name": "wide", "gamma": 0.8, "beta": 3}]
    config = parse_config({"align": {"beta": 2.5, "gamma": 0.4}, "arms": arms}, "c")
    made = [config.objective(arm) for arm in config.arms]
    assert [(o.beta, o.gamma) for o in made] == [(2.5, 0.0), (2.5, 0.4), (3.0, 0.8)]


def test_arms_change_parts_and_numbers_of_their_presets() -> None:
    arms = [
        {"loss": "robust_dpo", "label_smoothing": "2e-1", "anchor": "reference"},
        {"loss": "dpop", "dpop_lambda": 5},
        {"loss": "ipo", "reward": "dpo", "link": "hinge", "comparison": "softmax"},
    ]
    made = [config.objective(arm) for config in [parse_config({"arms": arms}, "c")] for arm in config.arms]
    assert (made[0].link, made[0].label_smoothing, made[0].anchor) == ("robust", 0.2, "reference")
    assert made[1].dpop_lambda == 5 and made[1].parts() == made[1].parts() | {"reward": "dpo", "link": "logistic"}
    assert list(made[2].parts().values()) == ["dpo", "hinge", "softmax", "none"]


def test_every_option_of_an_objective_is_one_of_arms_and_of_the_trainer() -> None:
    from dataclasses import fields

    from sirius_rec import SiriusConfig
    from sirius_rec.config_sections import ArmSection
    from sirius_rec.objectives.losses import Objective

    options = {f.name for f in fields(Objective)}
    others = {"loss", "name", "learning_rate", "negatives_from", "pool", "skip", "refresh"}
    assert set(ArmSection.model_fields) == options | others
    assert options <= {f.name for f in fields(SiriusConfig)}


def test_numbers_in_scientific_notation() -> None:
    """YAML 1.1 reads 1e-3, without a dot, as text."""
    assert parse_config(yaml.safe_load("sft: {learning_rate: 1e-3}"), "c").sft.learning_rate == 1e-3


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    with pytest.raises(ConfigError, match=r"c\.yaml: cannot read the configuration \(No such file"):
        load_config(file)
    with pytest.raises(ConfigError, match="cannot read the configuration \\(Is a directory"):
        load_config(tmp_path)
    file.write_text("name: a\nsft: {epochs: 1\nalign: 3\n")
    with pytest.raises(ConfigError, match=r"c\.yaml, line 3: not valid YAML \(.*\)$") as caught:
        load_config(file)
    assert "\n" not in str(caught.value)
    file.write_text("- 1\n")
    with pytest.raises(ConfigError, match="a configuration is a mapping of sections, found list"):
        load_config(file)
    file.write_bytes(b"name: \xff\xfe\n")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_config(file)
    file.write_text("# nothing yet\n")
    with pytest.raises(ConfigError, match=r"the file is empty: start from configs/table\.yaml"):
        load_config(file)
    assert parse_config({}, "c") == Config()


@pytest.mark.parametrize(
    ("text", "line", "key"),
    [
        ("name: a\nsft: {epochs: 1}\nsft:\n  epochs: 2\n", 3, "sft"),
        ("sft:\n  epochs: 1\n  batch_size: 8\n  epochs: 2\n", 4, "epochs"),
        ("arms:\n- dpo\n- {loss: dpo, beta: 1, beta: 2}\n", 3, "beta"),
    ],
)
def test_a_key_given_twice(tmp_path: Path, text: str, line: int, key: str) -> None:
    file = tmp_path / "c.yaml"
    file.write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert str(caught.value) == f"{file}, line {line}: not valid YAML (the key '{key}' is duplicated: keep one of them)"


def test_merged_keys_may_be_overridden(tmp_path: Path) -> None:
    """YAML's own merge: what stands in the mapping wins over what it merges in."""
    file = tmp_path / "c.yaml"
    file.write_text("sft: &stage {epochs: 2, batch_size: 8}\nalign:\n  <<: *stage\n  epochs: 3\n")
    align = load_config(file).align
    assert (align.epochs, align.batch_size) == (3, 8)


def test_overrides() -> None:
    raw = {"seeds": [0], "sft": {"epochs": 1}, "backbone": None}
    changed = apply_overrides(
        raw, ["sft.epochs=3", "seeds=[1, 2]", "backbone.tiny.layers=2", "data.input=a=b.csv", "backbone.lora=null"]
    )
    config = parse_config(changed, "c")
    assert (config.sft.epochs, config.seeds, config.backbone.tiny.layers) == (3, (1, 2), 2)
    assert (config.data.input, config.backbone.lora) == (Path("a=b.csv"), None)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("sft.epochs", "override 'sft.epochs': write it as key=value, for example align.epochs=3"),
        ("=3", "override '=3': write it as key=value, for example align.epochs=3"),
        ("seeds.0=1", "override 'seeds.0=1': 'seeds' is a list: give the whole of it, seeds=[…]"),
        ("name.x=2", "override 'name.x=2': 'name' is a value, not a section"),
        ("sft={a: 1, a: 2}", "override 'sft={a: 1, a: 2}': the key 'a' is duplicated: keep one of them"),
        ("sft.epochs=[", "override 'sft.epochs=[': the value is not valid YAML"),
    ],
)
def test_bad_overrides(override: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        apply_overrides({"seeds": [0], "name": "n"}, [override])
    assert str(caught.value) == message


def test_an_unknown_override_names_the_nearest_key(tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    file.write_text("name: a\n")
    with pytest.raises(ConfigError, match=r"unknown key 'sft\.epoch', did you mean 'sft\.epochs'\?"):
        load_config(file, ["sft.epoch=3"])


def test_resolved_yaml_loads_to_the_same(tmp_path: Path) -> None:
    raw = {
        "name": "größer",
        "seeds": [3, 1],
        "data": {"source": "table", "input": "a/b", "limits": {"train": 5}, "options": {"min_rating": 4}},
        "backbone": {"name": "org/model", "lora": {"rank": 4}, "pretrain": None},
        "arms": ["dpo", {"loss": "simpo", "name": "s2", "beta": 2, "negatives": "all"}],
        "align": {"learning_rate": 3e-7, "score_unsampled": 2},
    }
    config = parse_config(raw, "c")
    file = tmp_path / "config.yaml"
    file.write_text(config.to_yaml(), encoding="utf-8")
    assert load_config(file) == config
    assert load_config(file).to_yaml() == config.to_yaml()


def test_packaged_configurations_are_valid() -> None:
    root = Path(__file__).resolve().parents[1]
    files = [*root.glob("configs/*.yaml"), *root.glob("src/sirius_rec/configs/*.yaml"), root / "tests" / "mini.yaml"]
    assert len(files) >= 3
    for file in files:
        config = load_config(file)
        assert config.arms or config.methods


def test_the_page_of_all_keys_is_what_the_code_says() -> None:
    """Made by `python docs/make_configuration.py`."""
    docs = Path(__file__).resolve().parents[1] / "docs"
    page = (docs / "configuration.md").read_text()
    assert page == runpy.run_path(str(docs / "make_configuration.py"))["page"]()
    assert (
        "| `ratios` | 3 × whole number ≥ 0 | `[8, 1, 1]` |" in page and "| `lora` | section or null | `null` |" in page
    )


def test_a_line_names_eight_problems_and_counts_the_rest() -> None:
    """A configuration of a newer version has a new key in every arm."""
    said = problem("arms:\n" + "".join(f"  - {{loss: dpo, name: a{n}, new: 1}}\n" for n in range(12)))
    assert [f"arms.{n}.new'" in said for n in range(12)] == [True] * 8 + [False] * 4
    assert said.endswith("; and 4 more")
