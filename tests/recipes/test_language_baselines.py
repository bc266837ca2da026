"""`sirius compare` with baselines on the backbone and `arms: []`: a planted rule is learnt, kept, resumed, counted."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import MethodSection
from sirius_rec.errors import ConfigError
from sirius_rec.evaluation.tables import read_table, table_name
from sirius_rec.recipes.configuration import parse_config
from sirius_rec.recipes.methods import build_methods, llara
from sirius_rec.recipes.methods.llara import Llara
from sirius_rec.recipes.methods.tallrec import TallRec
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import RunFolder

CONFIG = """
name: planted
seeds: [0]
data:
  source: table
  window: {max_history: 4, min_history: 2}
  slates: [{size: 6}, {size: 10, splits: [test]}]
prompts: {slate: false}
backbone:
  tiny: {hidden_size: 32, layers: 2, heads: 4, intermediate_size: 64, vocab_size: 300, context: 256}
  pretrain: {epochs: 16, batch_size: 16, learning_rate: 3.0e-3}
sft: {epochs: 4, batch_size: 32, learning_rate: 3.0e-3}
arms: []
methods:
  - {method: llara, options: {curriculum: 0.6}}
  - zero_shot
  - {method: tallrec, options: {negatives: 2, epochs: 10, learning_rate: 2.0e-3}}
  - tallrec_listwise
  - {method: sasrec, options: {epochs: 8, dimension: 16, length: 5}}
evaluation: {generation_rows: 20, validation_rows: 30, checkpoints: [best, last]}
compute: {device: cpu, threads: 1}
"""
SLATES = ("test-uniform-6-s0", "test-uniform-10-s0")
TRAINED = ("llara", "tallrec", "tallrec_listwise")


def write_world(folder: Path, users: int = 200) -> None:
    """Every user stays in one of 8 genres of 5 items; the titles say nothing about them."""
    rng = np.random.default_rng(0)
    lines = ["user_id,item_id,timestamp"]
    for user in range(users):
        genre = int(rng.integers(8))
        lines += [f"u{user},{genre * 5 + i},{1000 + n}" for n, i in enumerate(rng.permutation(5))]
    (folder / "interactions.csv").write_text("\n".join(lines) + "\n")
    titles = ["item_id,title", *(f"{i},thing {chr(97 + i // 26)}{chr(97 + i % 26)}" for i in range(40))]
    (folder / "items.csv").write_text("\n".join(titles) + "\n")


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[RunFolder, dict[str, Any], str]]:
    folder = tmp_path_factory.mktemp("planted")
    (folder / "log").mkdir()
    write_world(folder / "log")
    raw = yaml.safe_load(CONFIG)
    raw["data"]["input"] = str(folder / "log")
    (folder / "c.yaml").write_text(yaml.safe_dump(raw))
    arguments = ["compare", str(folder / "c.yaml"), "--out", str(folder / "run"), "--json", str(folder / "t.json")]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    yield RunFolder(folder / "run"), json.loads((folder / "t.json").read_text()), result.output


def row(found: dict[str, Any], method: str, slates: str, checkpoint: str = "best") -> dict[str, Any]:
    key = (method, slates, checkpoint)
    return next(r for r in found["rows"] if (r["method"], r["slates"], r["checkpoint"]) == key)


def test_tallrecs_tokens_are_its_own(trained: Run) -> None:
    """Others of the same run in one process, as in a fusion, read what they were trained with."""
    run = Run.open(trained.folder.path)
    config = run.config.changed(methods=[MethodSection(method="tallrec")])
    before = len(run.tokenizer)
    own = TallRec(config, config.methods[0]).tokenizer(run)
    assert len(own) == before + 3 and len(run.tokenizer) == before


@pytest.mark.parametrize("method", TRAINED)
def test_the_planted_rule_is_learnt(planted: tuple[RunFolder, dict[str, Any], str], method: str) -> None:
    _, found, _ = planted
    for slates, chance in zip(SLATES, (1 / 6, 1 / 10), strict=True):
        untrained = row(found, "zero_shot", slates)["hr@1"]
        assert row(found, method, slates)["hr@1"] > max(3 * chance, untrained + 0.3)
    assert row(found, method, SLATES[0])["hr@1"] > 0.75


def test_labels_answers_and_costs(planted: tuple[RunFolder, dict[str, Any], str]) -> None:
    run, found, output = planted
    for label in ("Zero-shot LLM (random weights)", "TALLRec (yes/no per item), epochs=10, learning_rate=0.002",
                  "TALLRec (listwise)", "LLaRA, curriculum=0.6"):  # fmt: skip
        assert label in output
    seconds = {method: row(found, method, SLATES[0])["training_seconds"] for method in (*TRAINED, "zero_shot")}
    read = {name: json.loads((path / "done.json").read_text())["seconds"] for name, path in
            (("pretrain", run.pretrain(0)), ("sasrec", run.method("sasrec", 0)),
             *((m, run.method(m, 0)) for m in TRAINED))}  # fmt: skip
    assert seconds["zero_shot"] == 0
    assert seconds["tallrec"] == pytest.approx(read["pretrain"] + read["tallrec"], abs=0.11)
    assert seconds["llara"] == pytest.approx(read["pretrain"] + read["sasrec"] + read["llara"], abs=0.11)
    sizes = {method: row(found, method, SLATES[0])["parameters"] for method in (*TRAINED, "zero_shot")}
    # LLaRA: and a projector, 16 → 32 → 32
    assert sizes["tallrec_listwise"] == sizes["zero_shot"] == sizes["llara"] - (16 * 32 + 32 + 32 * 32 + 32)
    assert sizes["tallrec"] == sizes["zero_shot"] + 3 * 32  # its question, Yes and No
    assert row(found, "zero_shot", SLATES[0])["trainable_parameters"] == 0
    for method in ("llara", "tallrec_listwise", "zero_shot"):
        assert row(found, method, SLATES[0])["n_generated"] == 20
        assert row(found, method, SLATES[1])["valid_ratio"] is None
    assert row(found, "tallrec", SLATES[0])["valid_ratio"] is None
    assert not (run.path / "sft").exists() and (run.path / "pretrain").is_dir()
    assert not (run.method("llara", 0) / "sasrec").exists()


@pytest.mark.parametrize("key", TRAINED)
def test_contract_of_what_was_saved(planted: tuple[RunFolder, dict[str, Any], str], key: str) -> None:
    """Saved = scored; batch = single; permuting candidates permutes scores unless the prompt shows them; an empty
    history and a slate of one are rows like any other."""
    run, _, _ = planted
    opened = Run.open(run.path)
    ranker = build_methods(opened.config)[key].ranker(opened, 0, "best")
    histories, candidates = opened.slate_arrays(SLATES[1])
    table = read_table(run.scores / table_name(key, 0, SLATES[1], "best"))
    for scores, kept in zip(ranker.score(histories, candidates), table.frame["scores"].to_list(), strict=True):
        np.testing.assert_allclose(scores, kept, atol=1e-4)
    rows = ([histories[0], np.array([], int), histories[1]], [candidates[0], candidates[0][:1], candidates[1][:5]])
    together = ranker.score(*rows)
    for history, slate, scores in zip(*rows, together, strict=True):
        np.testing.assert_allclose(ranker.score([history], [slate])[0], scores, atol=1e-4)
    order = np.random.default_rng(0).permutation(len(candidates[0]))
    (mixed,) = ranker.score([histories[0]], [candidates[0][order]])
    same = np.allclose(mixed, together[0][order], atol=1e-4)
    assert same == (key != "tallrec_listwise")


def test_a_second_time_nothing_is_trained_or_scored(
    planted: tuple[RunFolder, dict[str, Any], str], tmp_path: Path
) -> None:
    run, found, _ = planted
    watched = (".safetensors", ".parquet", ".json")
    before = {p: p.stat().st_mtime_ns for p in run.path.rglob("*") if p.suffix in watched and p.parent != run.path}
    gone = run.scores / table_name("llara", 0, SLATES[1], "best")
    kept = read_table(gone).frame
    gone.unlink()
    config = run.path.parent / "c.yaml"
    result = CliRunner().invoke(
        cli.app, ["compare", str(config), "--out", str(run.path), "--json", str(tmp_path / "t")]
    )
    assert result.exit_code == 0 and "epoch 1" not in result.output.split("done in")[0]
    after = {p: p.stat().st_mtime_ns for p in before}
    assert {p for p in before if after[p] != before[p]} == {gone}
    for one, other in zip(read_table(gone).frame["scores"], kept["scores"], strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4)
    assert json.loads((tmp_path / "t").read_text())["rows"] == found["rows"]


def test_llara_trains_its_own_sasrec_where_the_run_has_none(
    planted: tuple[RunFolder, dict[str, Any], str], tmp_path: Path
) -> None:
    run, _, _ = planted
    raw = yaml.safe_load((run.path.parent / "c.yaml").read_text())
    write_world(tmp_path, users=30)
    raw["data"]["input"] = str(tmp_path)
    raw["backbone"]["pretrain"] = None
    raw["methods"] = [{"method": "llara", "preset": "paper"}]
    raw["evaluation"] = {"generation_rows": 0}
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    result = CliRunner().invoke(
        cli.app, ["compare", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    own = tmp_path / "run" / "methods" / "llara_paper" / "s0"
    assert (own / "sasrec" / "weights.safetensors").is_file() and (own / "best" / "projector.safetensors").is_file()
    found = json.loads((tmp_path / "run" / "comparison.json").read_text())
    assert "LLaRA, paper's settings" in result.output and row(found, "llara_paper", SLATES[0])["training_seconds"] > 0


def test_llara_builds_on_the_runs_sasrec_and_not_on_an_ablation(tmp_path: Path) -> None:
    def folder_of(methods: str, seed: int = 0) -> Path:
        config = parse_config(yaml.safe_load(CONFIG) | {"methods": yaml.safe_load(methods)}, "c.yaml")
        method = build_methods(config)["llara"]
        assert isinstance(method, Llara)
        return method.sasrec_folder(Run(run, config), seed).relative_to(run.path)

    run = RunFolder(tmp_path)
    own, shared = Path("methods/llara/s0/sasrec"), Path("methods/sasrec/s0")
    ablation = "{method: sasrec, name: bce, options: {loss: bce}}"
    assert folder_of(f"[{ablation}, {{method: sasrec, preset: paper}}, llara]") == own
    assert folder_of(f"[{ablation}, sasrec, llara]") == shared
    (tmp_path / own).mkdir(parents=True)
    (tmp_path / own / "done.json").write_text("{}")
    assert folder_of("[sasrec, llara]") == own  # what it was trained on
    assert folder_of("[sasrec, llara]", seed=1) == Path("methods/llara/s1/sasrec")  # and what its other seeds get
    assert folder_of(f"[{ablation}, {{method: sasrec, name: sasrec, preset: paper}}, llara]") == own


@pytest.mark.parametrize("main", [True, False])
def test_of_several_processes_the_main_one_trains_llaras_network(monkeypatch: pytest.MonkeyPatch, main: bool) -> None:
    events: list[str] = []

    class EnoughError(Exception):
        pass

    def stop(*args: Any) -> None:
        raise EnoughError

    @contextmanager
    def one_for_all() -> Iterator[None]:
        yield
        events.append("wait")

    monkeypatch.setattr(llara.processes, "is_main", lambda: main)
    monkeypatch.setattr(llara.processes, "one_for_all", one_for_all)
    monkeypatch.setattr(Llara, "_fitted_sasrec", lambda *args: events.append("network"))
    monkeypatch.setattr(llara, "starting_model", stop)
    monkeypatch.setattr(Run, "tokenizer", None)
    run = Run(RunFolder(Path("nowhere")), parse_config(yaml.safe_load(CONFIG), "test"))
    method = build_methods(run.config)["llara"]
    assert isinstance(method, Llara)
    with pytest.raises(EnoughError):
        method.training_set(run, 0, np.arange(3))
    # The main process finds what it trained in the folder.
    assert events == (["network", "wait", "network"] if main else ["wait", "network"])


@pytest.mark.parametrize(
    ("methods", "message"),
    [
        ("[zero_shut]", "no method is called 'zero_shut', did you mean 'zero_shot'"),
        (
            "[{method: tallrec, options: {negative: 2}}]",
            "unknown option 'negative' of tallrec, did you mean 'negatives'",
        ),
        ("[{method: tallrec, options: {epoch: 2}}]", "unknown option 'epoch' of tallrec, did you mean 'epochs'"),
        ("[{method: tallrec, options: {epochs: 0}}]", "epochs: must be at least 1"),
        ("[{method: tallrec, options: {negatives: 6}}]", "6 negatives, but a train slate of 6 has 5"),
        ("[{method: tallrec, options: {negatives: 0}}]", "negatives: must be at least 1"),
        ("[{method: llara, options: {curriculum: 0}}]", "curriculum: must be greater than 0"),
        ("[{method: llara, options: {slate: 1}}]", "slate: must be true or false"),
        ("[{method: llara, options: {batch_size: 10, micro_batch_size: 4}}]", "not a multiple of micro_batch_size"),
        ("[{method: zero_shot, options: {epochs: 1}}]", r"unknown option 'epochs' of zero_shot \(known: slate\)"),
        ("[{method: zero_shot, options: {slat: true}}]", "unknown option 'slat' of zero_shot, did you mean 'slate'"),
        ("[{method: zero_shot, preset: paper}]", "zero_shot has no settings of the paper"),
        ("[{method: chatrec, options: {modle: x}}]", "unknown option 'modle' of chatrec, did you mean 'model'"),
        ("[chatrec]", "model: which one should be asked"),
    ],
)
def test_wrong_methods_are_one_line(methods: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(yaml.safe_load(CONFIG) | {"methods": yaml.safe_load(methods)}, "c.yaml")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("method", [*TRAINED, "zero_shot"])
def test_prompts_too_long_are_found_before_training(
    planted: tuple[RunFolder, dict[str, Any], str], tmp_path: Path, method: str
) -> None:
    run, _, _ = planted
    raw = yaml.safe_load((run.path.parent / "c.yaml").read_text())
    raw["methods"] = [method]
    raw["backbone"]["tiny"]["context"] = 6
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(raw))
    result = CliRunner().invoke(cli.app, ["compare", str(tmp_path / "c.yaml"), "--out", str(tmp_path / "run")])
    assert "exceed the context of 6 tokens" in str(result.exception)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("key", [*TRAINED, "zero_shot", "sasrec", "item_knn"])
@pytest.mark.parametrize("titles", [False, True])
def test_what_is_served_is_what_was_evaluated(
    planted: tuple[RunFolder, dict[str, Any], str], tmp_path: Path, key: str, titles: bool
) -> None:
    """Of every kind of method, by id and by title, with the white space that people leave; long histories are cut."""
    run, _, _ = planted
    opened = Run.open(run.path)
    histories, slates = opened.slate_arrays(SLATES[0])
    names = opened.dataset.titles if titles else list(map(str, opened.dataset.items["item_id"].to_list()))
    space = "  " if titles else ""

    def named(items: Any) -> list[str]:
        return [space + names[i].replace(" ", " " + space) for i in items]

    rows = [{"history": named(h), "candidates": named(c)} for h, c in zip(histories[:8], slates[:8], strict=True)]
    full = next(n for n, history in enumerate(histories[:8]) if len(history) == 4)
    rows.append({**rows[full], "history": [*rows[full + 1 if full < 7 else 0]["history"], *rows[full]["history"]]})
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = ["rank", "--model", str(run.path), "--method", key, "--input", str(tmp_path / "q.jsonl")]
    result = CliRunner().invoke(
        cli.app, [*command, "--out", str(tmp_path / "a"), *(["--titles"] if titles else [])], catch_exceptions=False
    )
    assert result.exit_code == 0, result.output
    answers = [json.loads(line) for line in (tmp_path / "a").read_text().splitlines()]
    table = read_table(run.scores / table_name(key, 0, SLATES[0], "best")).frame["scores"].to_list()
    for answer, row, scores in zip(answers[:8], rows[:8], table[:8], strict=True):
        want = dict(zip(row["candidates"], scores, strict=True))
        np.testing.assert_allclose(answer["scores"], [want[item] for item in answer["candidates"]], atol=2e-4)
        assert "unknown" not in answer
    if key in (*TRAINED, "zero_shot"):  # what was trained on four items is shown four
        np.testing.assert_allclose(sorted(answers[-1]["scores"]), sorted(table[full]), atol=2e-4)
