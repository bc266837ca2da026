"""`sirius export`: the folder opens in plain transformers and peft, and the card's code ranks as `sirius rank` does."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sirius_rec import cli
from sirius_rec.config import Config
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.rankers.requests import Request
from sirius_rec.recipes import exporting
from sirius_rec.recipes.adoption import open_run
from sirius_rec.recipes.exporting import export
from sirius_rec.recipes.ranking import load_run_ranker
from sirius_rec.recipes.results import exported_backbone
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.story import run_stages

CHAT = (
    "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{{ eos_token }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
)
_MADE: dict[bool, Run] = {}  # trained once each


@pytest.fixture
def adapted(
    mini: Callable[..., Config], tokenizer: Any, tiny_llama: Callable[..., Any], tmp_path_factory: Any
) -> Callable[..., Run]:
    """SFT of an adapter on a local folder, in its chat template or not; trained once each."""

    def run(*, chat: bool) -> Run:
        if chat not in _MADE:
            root = tmp_path_factory.mktemp("export")
            tiny_llama(tokenizer, max_position_embeddings=1024).save_pretrained(root / "model")
            tokenizer.save_pretrained(root / "model")
            if chat:
                file = root / "model" / "tokenizer_config.json"
                file.write_text(json.dumps({**json.loads(file.read_text()), "chat_template": CHAT}))
            few = ("arms=[dpo]", "align.epochs=1", "evaluation.baseline=sft", "sft.examples_per_epoch=64",
                   f"prompts.chat={str(chat).lower()}")  # fmt: skip
            config = mini(f"backbone.name={root / 'model'}", "backbone.lora={rank: 2}", *few)
            _MADE[chat] = Run(open_run(root / "run", config), config)
            run_stages(_MADE[chat], ("sft",), lambda line: None)
        return _MADE[chat]

    return run


def ranked_by_the_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the code of README.md leaves behind, run beside the folder."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder.parent)
    names: dict[str, Any] = {}
    exec(code.group(1), names)
    return names


def by_sirius(run: Run, method: str, titles: list[str]) -> list[float]:
    from sirius_rec.schema import HISTORY

    history = [run.dataset.titles[i] for i in run.dataset.examples("train")[HISTORY][0].to_list()]
    served = load_run_ranker(run, method=method, seed=0, checkpoint="best", titles=True)
    [scores] = served.score([Request(1, tuple(history), tuple(titles))])
    return [float(score) for score in scores]


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("merge", [False, True])
def test_an_adapter_opens_in_peft_and_merged_in_transformers(
    adapted: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chat: bool, merge: bool
) -> None:
    run, out = adapted(chat=chat), tmp_path / "out"
    arguments = ["export", str(run.folder.path), "--method", "sft", "--out", str(out), *(["--merge"] if merge else [])]
    result = CliRunner().invoke(cli.app, arguments, catch_exceptions=False)
    assert result.exit_code == 0 and "README.md says how to use it" in result.output
    assert (out / "adapter_model.safetensors").is_file() is not merge
    assert not (out / "trainer_state.json").exists()
    names = ranked_by_the_card(out, monkeypatch)
    assert type(names["model"]).__name__ == ("LlamaForCausalLM" if merge else "PeftModelForCausalLM")
    own = [names["log_prob"](title) for title in names["titles"]]
    assert own == pytest.approx(by_sirius(run, "sft", names["titles"]), abs=1e-4)
    prompt = json.loads((out / "prompt.json").read_text())
    assert prompt["chat"] is chat and prompt["max_history"] == 5 and prompt["shows_slate"] is True


def test_a_whole_model_in_half_precision(trained: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    export(trained, tmp_path / "whole", method="sft")
    names = ranked_by_the_card(tmp_path / "whole", monkeypatch)
    own = [names["log_prob"](title) for title in names["titles"]]
    assert own == pytest.approx(by_sirius(trained, "sft", names["titles"]), abs=1e-4)
    card = (tmp_path / "whole" / "README.md").read_text()
    assert trained.dataset.fingerprint in card and "Not evaluated" in card and "a small Llama from scratch" in card
    export(trained, tmp_path / "half", method="sft", dtype="bfloat16")
    half = ranked_by_the_card(tmp_path / "half", monkeypatch)
    assert next(half["model"].parameters()).dtype == torch.bfloat16
    assert [half["log_prob"](t) for t in half["titles"]] == pytest.approx(own, abs=0.3)
    small, large = (os.path.getsize(tmp_path / name / "model.safetensors") for name in ("half", "whole"))
    assert small < 0.6 * large


@pytest.mark.parametrize(
    ("kind", "words"),
    [("user", "rows of held-out users"), ("time", "rows after the last"), ("leave_last_out", "last row")],
)
def test_the_card_says_whose_rows_are_tested(kind: str, words: str, trained: Run) -> None:
    assert trained.dataset.info["recipe"]["split"]["kind"] == "user"
    info = {**trained.dataset.info, "recipe": {"split": {"kind": kind}}}
    assert words in exporting._tested(SimpleNamespace(dataset=SimpleNamespace(info=info)))  # type: ignore[arg-type]


def test_exports_that_cannot_be(adapted: Callable[..., Run], trained: Run, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    for run, options, error, message in (
        (trained, {"out": tmp_path / "there"}, ConfigError, "exists: choose another folder"),
        (trained, {"merge": True}, ConfigError, "is a whole model already"),
        (adapted(chat=False), {"dtype": "bfloat16"}, ConfigError, "add --merge"),
        (trained, {"method": "popularity"}, RunError, "popularity cannot be exported; trained and able to: sft"),
        (trained, {"method": "dpo_sirius"}, RunError, "dpo_sirius"),
    ):
        with pytest.raises(error, match=message) as caught:
            export(run, **{"out": tmp_path / "new", **options})
        assert "\n" not in str(caught.value) and not (tmp_path / "new").exists()


def test_a_checkpoint_without_weights_is_no_model_and_all_of_one_can_be_read(trained: Run, tmp_path: Path) -> None:
    shutil.copytree(trained.folder.path, tmp_path / "run")
    run = Run.open(tmp_path / "run")
    weights = run.folder.sft(0) / "best" / "model.safetensors"
    weights.chmod(0o600)
    export(run, out=tmp_path / "out", method="sft")
    assert len({file.stat().st_mode for file in (tmp_path / "out").iterdir()}) == 1
    weights.unlink()
    with pytest.raises(RunError, match=r"best: holds no weights: put them back, or delete .*sft/s0 and"):
        export(run, out=tmp_path / "other", method="sft")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("chat", [False, True])
def test_an_exported_model_is_asked_as_it_was_trained(adapted: Callable[..., Run], tmp_path: Path, chat: bool) -> None:
    """`sirius rank --model FOLDER` without options: the scores are those of the run; with options the options'."""
    from sirius_rec.recipes.ranking import load_plain_model

    run = adapted(chat=chat)
    export(run, tmp_path / "out", method="sft")
    titles = run.dataset.titles[:4]
    expected = by_sirius(run, "sft", titles)
    history = [run.dataset.titles[i] for i in run.dataset.examples("train")["history"][0].to_list()]
    request = Request(1, (*run.dataset.titles[50:58], *history), tuple(titles))  # more than the model has seen at once
    served = load_plain_model(str(tmp_path / "out"))
    [scores] = served.score([request])
    assert [float(score) for score in scores] == pytest.approx(expected, abs=1e-4)
    assert served.name == f"{tmp_path / 'out'}, prompts as its prompt.json says: history of 5{', as chat' * chat}"
    if chat:  # --no-chat
        [others] = load_plain_model(str(tmp_path / "out"), chat=False).score([request])
        assert [float(score) for score in others] != pytest.approx(expected, abs=1e-2)
    [others] = load_plain_model(str(tmp_path / "out"), template="music", max_history=3).score([request])
    assert [float(score) for score in others] != pytest.approx(expected, abs=1e-2)


def test_a_backbone_that_was_exported_is_said_to_have_learned_from_users(
    adapted: Callable[..., Run], tmp_path: Path
) -> None:
    run = adapted(chat=False)
    assert exported_backbone(run.config) == []
    export(run, tmp_path / "out", method="sft")
    again = run.config.changed(backbone=run.config.backbone.changed(name=str(tmp_path / "out")))
    assert (
        "out was trained on users already, and exported. Which of these evaluation rows" in exported_backbone(again)[0]
    )


def test_a_prompt_file_on_the_hub_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the hub's own client, from what it keeps of the hub on this machine."""
    from sirius_rec.recipes.prompt_file import PROMPT_FILE, in_words, prompt_form

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept, commit = tmp_path / "models--me--ranker", "a" * 40
    (kept / "snapshots" / commit).mkdir(parents=True)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text(commit)
    said = {"history": "Heard:", "candidates": "", "answer": None, "shows_slate": False, "max_history": 7, "chat": True}
    (kept / "snapshots" / commit / PROMPT_FILE).write_text(json.dumps(said))
    unasked: dict[str, Any] = {"template": None, "shows_slate": None, "max_history": None, "chat": None}
    found = prompt_form("me/ranker", **unasked)
    assert (found.form.history, found.max_history, found.chat) == ("Heard:", 7, True)
    with pytest.raises(ConfigError, match=r"me/ranker: its prompts continue the history, .*: leave --slate out"):
        prompt_form("me/ranker", **{**unasked, "shows_slate": True})
    assert prompt_form("me/ranker", **{**unasked, "shows_slate": True, "template": "music"}).form.shows_slate
    absent = prompt_form("me/other", **unasked)
    assert in_words("me/other", absent.recipe) == "me/other, prompts of template generic: history of 10"


def test_a_prompt_file_that_is_none_of_ours_or_damaged(adapted: Callable[..., Run], tmp_path: Path) -> None:
    from sirius_rec.recipes.prompt_file import PROMPT_FILE, prompt_form

    unasked: dict[str, Any] = {"template": None, "shows_slate": None, "max_history": None, "chat": None}
    run = adapted(chat=False)
    export(run, tmp_path / "out", method="sft")
    file = tmp_path / "out" / PROMPT_FILE
    ours = json.loads(file.read_text())
    assert prompt_form(file.parent, **unasked).max_history == run.config.data.window.max_history == 5
    own = prompt_form(file.parent, **unasked)
    assert own.form.shows_slate and not prompt_form(file.parent, **{**unasked, "shows_slate": False}).form.shows_slate
    file.write_text(json.dumps({**ours, "shows_slate": False}))
    hidden = prompt_form(file.parent, **unasked)
    assert not hidden.form.shows_slate and hidden.recipe != own.recipe
    file.write_text(json.dumps({**ours, "answer": "And then?"}))
    assert prompt_form(file.parent, **unasked).recipe != own.recipe, "answers of two prompts could be mixed"
    for damage in ({"answer": 3}, {"max_history": -1}):
        file.write_text(json.dumps({**ours, **damage}))
        with pytest.raises(ConfigError, match=rf"prompt\.json: '{next(iter(damage))}' is missing or no value"):
            prompt_form(file.parent, **unasked)
    file.write_text(json.dumps({**ours, "fields": ["genre"], "field_tokens": 8}))
    with pytest.raises(ConfigError, match="was trained on titles with genre behind them"):
        prompt_form(file.parent, **unasked)
    for foreign in ('{"chat": "yes", "history": 3}', '{"prompt": "Say hello"}', "[1]", "no json"):
        file.write_text(foreign)
        assert prompt_form(file.parent, **unasked).form.name == "generic"


def test_a_catalogue_is_not_searched_by_a_model_whose_prompts_list_candidates(
    adapted: Callable[..., Run], tmp_path: Path
) -> None:
    export(adapted(chat=False), tmp_path / "out", method="sft")
    (tmp_path / "items.csv").write_text("item_id,title\na,Air\nb,Can\n")
    (tmp_path / "in.jsonl").write_text('{"history": ["a"]}\n')
    arguments = ["recommend", "--model", str(tmp_path / "out"), "--items", str(tmp_path / "items.csv"), "--input",
                 str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl"), "--top", "1"]  # fmt: skip
    result = CliRunner().invoke(cli.app, arguments)
    assert isinstance(result.exception, ConfigError) and "its prompts list the candidates" in str(result.exception)
