"""Job of ChatRec: ask about every test slate, and write scores, answers and what they cost."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from sirius_rec.config import Config, MethodSection
from sirius_rec.rankers.chat.client import ChatClient
from sirius_rec.rankers.chat.options import chat_options
from sirius_rec.rankers.chat.ranker import ChatRanker
from sirius_rec.recipes import evaluation
from sirius_rec.recipes.job import Ticker, say
from sirius_rec.recipes.run_folder import RunFolder, write_json
from sirius_rec.schema import TARGET, SlateName

if TYPE_CHECKING:
    from pathlib import Path

    from sirius_rec.data.store import Dataset
    from sirius_rec.rankers.chat.options import ChatOptions
    from sirius_rec.rankers.chat.parsing import Ranking


def ask_and_score(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """Answers lie in the method's folder, so that a run that was stopped asks only for the rest."""
    folder, names = run.method(method.key, seed), evaluation.model_slates(config, dataset)
    there = all(evaluation.all_there(run, config, method.key, seed, name) for name in names)
    options, done = chat_options(method.options), folder / "done.json"
    if there and done.is_file():
        _price_again(done, options)
        return
    ranker = _ranker(run, config, dataset, method, seed)
    asked = silent = 0
    for number, name in enumerate(names):
        histories, candidates = evaluation.slate_arrays(dataset, name)
        ranker.progress = Ticker(f"{method.key} on {name}", len(histories))
        found = ranker.rankings(histories, candidates)
        asked, silent = asked + len(found), silent + sum(not ranking.order for ranking in found)
        scores = [ranking.scores(len(slate)) for ranking, slate in zip(found, candidates, strict=True)]
        evaluation.write_scores(run, config, dataset, method.key, seed, name, scores)
        if number == 0 and config.evaluation.generation_rows:
            _write_answers(run, config, dataset, method.key, seed, name, found)
    write_json(done, {"parameters": None, "seconds": 0.0, **ranker.spent()})
    if silent:
        say(f"{method.key}: {silent} of {asked} answers named no candidate; what they say is in {folder / 'answers'}")


def ask_next(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """Ask about the first row that has no answer yet, and keep it."""
    ranker = _ranker(run, config, dataset, method, seed)
    for name in evaluation.model_slates(config, dataset):
        if ranker.ask_next(*evaluation.slate_arrays(dataset, name)):
            return


def _ranker(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> ChatRanker:
    client = ChatClient(chat_options(method.options), run.method(method.key, seed) / "answers")
    return ChatRanker(client, config.prompts.form(), dataset.titles)


def _price_again(done: Path, options: ChatOptions) -> None:
    """The cost at today's prices, which may have been mended since."""
    kept = json.loads(done.read_text())
    cost = options.cost(kept["prompt_tokens"], kept["completion_tokens"])
    if cost != kept["cost"]:
        write_json(done, {**kept, "cost": cost})


def _write_answers(
    run: RunFolder, config: Config, dataset: Dataset, key: str, seed: int, name: str, found: list[Ranking]
) -> None:
    """ValidRatio's file: whether the first title named is one candidate's, on the rows that all methods answer."""
    from sirius_rec.rankers.generation import Answer

    _, candidates = evaluation.slate_arrays(dataset, name)
    targets = dataset.examples(SlateName.parse(name).split)[TARGET].to_list()
    rows = evaluation.answered_rows(config, len(found))
    answers = []
    for r in rows:
        first = found[r].first
        answers.append(Answer(found[r].text, found[r].valid, first is not None and candidates[r][first] == targets[r]))
    for checkpoint in config.evaluation.checkpoints:
        entry = evaluation.answers_entry(dataset, name, key, seed, checkpoint, rows, answers)
        write_json(evaluation.answers_file(run, key, seed, name, checkpoint), entry)
