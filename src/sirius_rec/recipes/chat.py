"""Job of ChatRec: ask about every test slate, and write scores, answers and what they cost."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sirius_rec.config import Config, MethodSection
from sirius_rec.rankers.chat.client import ChatClient
from sirius_rec.rankers.chat.options import chat_options
from sirius_rec.rankers.chat.ranker import ChatRanker
from sirius_rec.recipes import evaluation
from sirius_rec.recipes.job import Ticker
from sirius_rec.recipes.run_folder import RunFolder, write_json
from sirius_rec.schema import TARGET, SlateName

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.rankers.chat.parsing import Ranking


def ask_and_score(run: RunFolder, config: Config, dataset: Dataset, method: MethodSection, seed: int) -> None:
    """Answers lie in the method's folder, so that a run that was stopped asks only for the rest."""
    folder, names = run.method(method.key, seed), evaluation.model_slates(config, dataset)
    there = all(evaluation.all_there(run, config, method.key, seed, name) for name in names)
    if there and (folder / "done.json").is_file():
        return
    client = ChatClient(chat_options(method.options), folder / "answers")
    ranker = ChatRanker(client, config.prompts.form(), dataset.titles)
    for number, name in enumerate(names):
        histories, candidates = evaluation.slate_arrays(dataset, name)
        ranker.progress = Ticker(f"{method.key} on {name}", len(histories))
        found = ranker.rankings(histories, candidates)
        scores = [ranking.scores(len(slate)) for ranking, slate in zip(found, candidates, strict=True)]
        evaluation.write_scores(run, config, dataset, method.key, seed, name, scores)
        if number == 0 and config.evaluation.generation_rows:
            _write_answers(run, config, dataset, method.key, seed, name, found)
    write_json(folder / "done.json", {"parameters": None, "seconds": 0.0, **ranker.spent()})


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
