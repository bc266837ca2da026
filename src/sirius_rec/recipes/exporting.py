"""`sirius export`: a run's language model as a folder that opens without sirius-rec, with its prompt and a card."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from sirius_rec import __version__, atomic
from sirius_rec.audit.audit import read_audit
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.results import read_results
from sirius_rec.recipes import starting
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods.base import Method
from sirius_rec.recipes.methods.finetuned import Finetuned
from sirius_rec.recipes.prompt_file import PROMPT_FILE, write_prompt
from sirius_rec.recipes.ranking import chosen_method, weights_of
from sirius_rec.recipes.run import Run, quiet
from sirius_rec.recipes.scoring import measured_otherwise
from sirius_rec.report.text import slates_in_words
from sirius_rec.schema import HISTORY
from sirius_rec.training.gguf import HUB_NAMES

if TYPE_CHECKING:
    from sirius_rec.prompts.templates import Template

# Of a stage's folder, what belongs to training and not to the model.
_TRAINING = ("trainer_state.json", "README.md")
Dtype = Literal["float32", "bfloat16", "float16"]

_CARD = """---
library_name: {library}
pipeline_tag: text-generation
{base}tags: [recommendation, sirius-rec]
---

# {name}

A language model that ranks items for a user from the titles of what the user had before. {ranks_by}. Made by sirius-rec
{version}.

## How to use it

```python
{imports}

tokenizer = AutoTokenizer.from_pretrained("{folder}")
model = {loader}.from_pretrained("{folder}").eval()

prompt = {prompt!r}
titles = {titles!r}


def log_prob(title):
    start = {prefix}tokenizer(prompt, add_special_tokens=False)["input_ids"]
    answer = [*tokenizer({answer}, add_special_tokens=False)["input_ids"], {end}]
    with torch.no_grad():
        logps = model(input_ids=torch.tensor([start + answer])).logits.float().log_softmax(-1)[0]
    return sum(logps[len(start) - 1 + n, token].item() for n, token in enumerate(answer))


print(sorted(titles, key=log_prob, reverse=True))
```

The history's newest {max_history} titles are shown, oldest first, one per line; `{prompt_file}` holds the lines around
them.{slate}

## What it was trained on

- Data: source `{source}`, {items} items; fingerprint `{fingerprint}`
- Base: {base_words}; {stage}
- Objective: `{objective}`
- Audit of the test slates: {audit}

## How good it is

{table}

## Limits

It knows the catalogue and the users of its data, and is as good for others as was measured on others: not at all here.
Measured are rankings of held-out items, not what people would do with them. The licence of the base model and the terms
of the data apply; sirius-rec does not know them.
"""


def export(
    run: Run,
    out: Path,
    *,
    method: str | None = None,
    seed: int | None = None,
    checkpoint: str = "best",
    merge: bool = False,
    dtype: Dtype | None = None,
) -> tuple[Method, int]:
    """Write the folder; the method and seed that it holds. By default what had the highest HR@1 on validation slates.

    merge: an adapter becomes a whole model with its base. dtype: of the weights written; None: as they were trained.

    ConfigError where `out` exists, or for a dtype of an adapter that is not merged; RunError where nothing of that name
    is trained, or the method is none that opens without sirius-rec.
    """
    quiet()
    if out.exists():
        raise ConfigError(f"--out {out}: exists: choose another folder")
    chosen, seed = chosen_method(
        run, method, seed, lambda one: isinstance(one, Finetuned) and one.reads_titles, "be exported"
    )
    assert isinstance(chosen, Finetuned)
    source = chosen.folder(run, seed) / checkpoint
    adapter = (source / "adapter_config.json").is_file()
    if merge and not adapter:
        raise ConfigError(f"--merge: {chosen.key} is a whole model already: leave it out")
    if adapter and dtype is not None and not merge:
        raise ConfigError("--dtype: an adapter keeps the type that it was trained in: add --merge, or leave it out")
    if not source.is_dir():
        raise RunError(f"{source}: no such checkpoint: evaluate the run again")
    if not weights_of(source):
        raise RunError(f"{source}: holds no weights: put them back, or delete {source.parent} and train it again")
    with atomic.replacing(out) as partial:
        if merge or dtype is not None:
            _save_whole(run, source, partial, dtype)
        else:
            shutil.copytree(source, partial, ignore=shutil.ignore_patterns(*_TRAINING))
        template = chosen.template(run)
        write_prompt(partial, run, template)
        whole = merge or not adapter
        if run.config.prompts.fields:
            fields = ", ".join(run.config.prompts.fields)
            log(f"note: it reads titles with {fields} behind them: rank, recommend and serve ask the run alone")
        atomic.write_text(partial / "README.md", _card(run, chosen, seed, checkpoint, out.name, template, whole=whole))
        _readable(partial)
    return chosen, seed


def _readable(folder: Path) -> None:
    """Whoever may read the card may read all: the Trainer's weights are its user's alone."""
    mode = (folder / "README.md").stat().st_mode
    for file in (entry for entry in folder.rglob("*") if entry.is_file()):
        file.chmod(mode)


def _save_whole(run: Run, source: Path, out: Path, dtype: Dtype | None) -> None:
    """The whole model, an adapter merged into its base, and the tokenizer."""
    import torch

    from sirius_rec.recipes.models import load_stage_model

    model = load_stage_model(run.config, source)
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if dtype is not None:
        model = model.to(getattr(torch, dtype))
    model.save_pretrained(out)
    run.tokenizer.save_pretrained(out)


def _card(
    run: Run, method: Finetuned, seed: int, checkpoint: str, folder: str, template: Template, *, whole: bool
) -> str:
    base, dataset = run.config.backbone.model, run.dataset
    audit, facts = read_audit(run.folder.data), method.facts(run)
    parts = {key: facts[key] for key in ("reward", "link", "comparison", "anchor") if key in facts}
    return _CARD.format(
        library="transformers" if whole else "peft",
        base="" if base == "tiny" else f"base_model: {HUB_NAMES.get(base, base)}\n",
        name=f"{method.label}, seed {seed}, of {run.config.name}",
        ranks_by=method.ranks_by,
        version=__version__,
        folder=folder,
        **_code(run, method, template, whole=whole),
        max_history=run.config.data.window.max_history,
        prompt_file=PROMPT_FILE,
        slate=_shown(run, template),
        source=run.config.data.source,
        items=f"{dataset.n_items:,}",
        fingerprint=dataset.fingerprint,
        base_words="a small Llama from scratch" if base == "tiny" else f"`{base}`",
        stage=f"{checkpoint} checkpoint of {method.train_rows(run) or 0:,} training rows",
        objective=", ".join(f"{part} {name}" for part, name in parts.items()) or "likelihood of the target",
        audit="none was made" if audit is None else f"{audit['verdict']} ({audit['slates']})",
        table="\n\n".join([_table(run, method), *starting.notes(run, (seed,))]),
    )


def _shown(run: Run, template: Template) -> str:
    prompts, said = run.config.prompts, ""
    if prompts.fields:
        behind = "; ".join(prompts.fields)
        said = (
            f" Behind a title stands ({behind}), cut to {prompts.field_tokens} tokens; the answer is the title alone."
        )
    return f"{said} The candidates are listed in the prompt, in the order shown." if template.shows_slate else said


def _code(run: Run, method: Finetuned, template: Template, *, whole: bool) -> dict[str, Any]:
    """What the card's code needs to score the first titles of the catalogue for the first history of the data."""
    encoder, titles = method.encoder(run), run.dataset.titles
    history = run.dataset.examples("train")[HISTORY][0].to_list()
    others = [item for item in range(len(titles)) if item not in history][:3]
    candidates = [titles[item] for item in others]
    lists = ([run.shown[item] for item in items] for items in (history, others))
    text, prefix, (before, after) = encoder.plain(template.render(*lists))
    library, loader = ("transformers", "AutoModelForCausalLM") if whole else ("peft", "AutoPeftModelForCausalLM")
    names = "AutoModelForCausalLM, AutoTokenizer" if whole else "AutoTokenizer"
    peft = "" if whole else f"from {library} import {loader}\n"
    return {
        "imports": f"import torch\n{peft}from transformers import {names}",
        "loader": loader,
        "prompt": text,
        "titles": candidates,
        "prefix": f"{prefix} + " if prefix else "",
        "answer": " + ".join(filter(None, (before and repr(before), "title", after and repr(after)))),
        "end": encoder.eos_id,
    }


def _table(run: Run, method: Method) -> str:
    """What results.json has of the method beside the best baseline, as Markdown; words where there is none."""
    if (origin := run.folder.origin()) is not None:
        return _table_of_origin(origin)
    if not run.folder.results.is_file():
        return "Not evaluated: `sirius evaluate` was not run."
    results = read_results(run.folder.results)
    if measured_otherwise(results, run.config) is not None:
        return "Not evaluated as the run is configured now: `sirius evaluate` was not run since."
    lines = ["| slates | metric | this model | 95 % | best without a language model |", "|---|---|---|---|---|"]
    for row in results["summary"]:
        if row["method"] != method.key or row["checkpoint"] != "best":
            continue
        others = [
            one
            for one in results["summary"]
            if (one["slates"], one["checkpoint"]) == (row["slates"], "best")
            and not results["methods"][one["method"]].get("language_model")
        ]
        for metric in ("hr@1", "ndcg@10"):
            best = max(others, key=lambda one: one[metric], default=None)
            beside = "–" if best is None else f"{best['label']} {best[metric]:.3f}"
            span = "–" if row[f"{metric}_low"] is None else f"{row[f'{metric}_low']:.3f} to {row[f'{metric}_high']:.3f}"
            words = slates_in_words(row["slates"])
            lines.append(f"| {words}, {row['n']:,} rows | {metric.upper()} | {row[metric]:.3f} | {span} | {beside} |")
    if len(lines) == 2:
        return "Not evaluated on test slates."
    seeds = "the mean over the run's seeds, of which this is one" if len(run.config.seeds) > 1 else "one seed"
    return "\n".join([*lines, "", f"HR@1 and NDCG@10 on {_tested(run)}; {seeds}; intervals over users."])


def _table_of_origin(origin: dict[str, Any]) -> str:
    """What was measured of the recipe before it was trained on all of the data, as Markdown."""
    said = "This model was trained on rows of all of the data, test rows too: nothing is left to measure it on."
    if not origin["measured"]:
        return f"{said} Its recipe was not evaluated."
    lines = ["| slates | metric | the recipe, before | 95 % |", "|---|---|---|---|"]
    for row in origin["measured"]:
        for metric in ("hr@1", "ndcg@10"):
            low, high = row[f"{metric}_low"], row[f"{metric}_high"]
            span = "–" if low is None else f"{low:.3f} to {high:.3f}"
            words = slates_in_words(row["slates"])
            lines.append(f"| {words}, {row['n']:,} rows | {metric.upper()} | {row[metric]:.3f} | {span} |")
    before = f"The recipe ({origin['method']}), trained without them, had on held-out rows:"
    return "\n".join([f"{said} {before}", "", *lines, "", "Intervals over users."])


def _tested(run: Run) -> str:
    """Whose rows the test rows are."""
    kind = run.dataset.info.get("recipe", {}).get("split", {}).get("kind")
    return {
        "user": "rows of held-out users", "time": "rows after the last of training and validation",
        "leave_last_out": "every user's last row",
    }.get(kind, "test rows")  # fmt: skip
