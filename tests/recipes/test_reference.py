"""The reference cache: log π_ref once per prompt and candidate, under a key of all it depends on."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from sirius_rec.config import Config
from sirius_rec.errors import RunError
from sirius_rec.prompts.templates import TEMPLATES
from sirius_rec.recipes import models, reference, scoring
from sirius_rec.recipes import records as recipe_records
from sirius_rec.recipes.adoption import adopt
from sirius_rec.recipes.run import Run
from sirius_rec.schema import SlateName
from sirius_rec.scoring import kept, scorer
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training.records import PreferenceDataset


@pytest.fixture
def run(trained: Run, tmp_path: Path) -> Run:
    """A copy of the miniature run that may be damaged."""
    shutil.copytree(trained.folder.path, tmp_path / "run")
    return Run.open(tmp_path / "run")


def test_it_holds_what_the_sft_model_says(trained: Run) -> None:
    """Against the naive scorer on single rows: train rows in order, column 0 the target, the rest in slate order."""
    from sirius_rec.scoring.scorer import score_rows
    from sirius_rec.training.records import encode_records

    dataset, encoder = trained.dataset, trained.encoder
    cached = reference.read_reference(trained, 0)
    assert [len(cached[split]) for split in ("train", "val")] == [dataset.examples(s).height for s in ("train", "val")]
    model = models.load_stage_model(trained.config, trained.folder.sft(0) / "best")
    for split, rows in (("train", [0, 9]), ("val", [3])):
        name = SlateName(split, "uniform", 6, 0)
        records = recipe_records.slate_records(dataset, name, trained.template, np.array(rows))
        direct = score_rows(model, encode_records(records, encoder), encoder.pad_id, mode="naive", max_tokens=8192)
        for row, logps in zip(rows, direct, strict=True):
            assert cached[split][row].shape == (6,)
            np.testing.assert_allclose(cached[split][row], logps, atol=1e-4)


def test_a_cache_that_was_killed_goes_on(
    run: Run, mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    adopt(run.folder, mini("evaluation.batch_tokens=500"))
    run.folder.reference(0).unlink()
    reference.reference(str(run.folder.path), 0)
    whole = run.folder.reference(0).read_bytes()
    run.folder.reference(0).unlink()
    monkeypatch.setattr(kept, "_EVERY", 0.0)
    said: list[int] = []

    def kill(count: int) -> None:
        said.append(count)
        if len(said) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(reference, "Ticker", lambda name, total: kill)
    with pytest.raises(KeyboardInterrupt):
        reference.reference(str(run.folder.path), 0)
    done, said[:] = sum(said), []
    monkeypatch.setattr(reference, "Ticker", lambda name, total: said.append)
    reference.reference(str(run.folder.path), 0)
    assert said[0] == done > 0 and sum(said) == run.dataset.n_rows("train") + run.dataset.n_rows("val")
    assert run.folder.reference(0).read_bytes() == whole
    assert [path.name for path in run.folder.reference(0).parent.iterdir()] == ["s0.npz"]


def test_the_key_changes_with_the_weights(run: Run, trained: Run) -> None:
    before = reference.ReferenceCache(run, 0).key
    assert before == reference.ReferenceCache(trained, 0).key
    weights = run.folder.sft(0) / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert reference.ReferenceCache(run, 0).key != before
    with pytest.raises(RunError, match=r"s0\.npz: the reference cache is missing or of another model: run"):
        reference.read_reference(run, 0)


@pytest.mark.parametrize(
    "override",
    [
        "prompts.template=music",
        "prompts.slate=false",
        "align.examples_per_epoch=9",
        "compute.scoring=naive",
        "backbone.dtype=bfloat16",
    ],
)
def test_the_key_changes_with_what_is_scored(trained: Run, mini: Callable[..., Config], override: str) -> None:
    keys = {reference.ReferenceCache(Run(trained.folder, config), 0).key for config in (mini(), mini(override))}
    assert len(keys) == 2


def test_a_damaged_cache_is_made_again(run: Run, trained: Run) -> None:
    whole = run.folder.reference(0).read_bytes()
    run.folder.reference(0).write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="the reference cache is missing"):
        reference.read_reference(run, 0)
    reference.reference(str(run.folder.path), 0)
    again, before = (reference.read_reference(one, 0) for one in (run, trained))
    for split in ("train", "val"):
        assert np.array_equal(np.concatenate(again[split]), np.concatenate(before[split]))


def test_a_whole_cache_is_kept(run: Run) -> None:
    before = run.folder.reference(0).stat().st_mtime_ns
    reference.reference(str(run.folder.path), 0)
    assert run.folder.reference(0).stat().st_mtime_ns == before


def test_missing(run: Run, trained: Run) -> None:
    run.folder.reference(0).unlink()
    with pytest.raises(RunError, match="the reference cache is missing"):
        scoring.fit(str(run.folder.path), "dpo_sirius", 0)


def test_the_key_changes_with_the_words_of_a_template(run: Run, trained: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not only with its name: the rows are hashed as the model reads them."""
    before = reference.ReferenceCache(trained, 0).key
    words = replace(TEMPLATES["generic"], answer="What comes next:")
    monkeypatch.setitem(TEMPLATES, "generic", words)
    assert reference.ReferenceCache(trained, 0).key != before


def test_the_key_changes_with_the_configuration_of_the_model(run: Run) -> None:
    """Another rope or activation with the same weights is another model."""
    before = reference.ReferenceCache(run, 0).key
    file = run.folder.sft(0) / "best" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "rms_norm_eps": 1e-3}))
    assert reference.ReferenceCache(run, 0).key != before


DRAWN = ("align.score_unsampled=1", "align.examples_per_epoch=20", "align.epochs=2")


def filled(run: Run, config: Config, monkeypatch: pytest.MonkeyPatch) -> tuple[reference.ReferenceCache, list[int]]:
    """The cache of a configuration, made or completed, and how many candidates were scored for it."""
    asked: list[int] = []

    def counted(model: object, rows: list[PromptCompletions], pad_id: int, **options: object) -> list[np.ndarray]:
        asked.extend(len(row.completions) for row in rows)
        return score_rows(model, rows, pad_id, **options)  # type: ignore[arg-type]

    score_rows = scorer.score_rows
    adopt(run.folder, config)
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "score_rows", counted)
        reference.reference(str(run.folder.path), 0)
    return reference.ReferenceCache(Run.open(run.folder.path), 0), asked


def test_only_what_arms_draw_is_scored_and_arms_that_come_later_add_to_it(
    run: Run, mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Against the cache of all candidates, and against what each arm's own epochs draw."""
    from sirius_rec.training.config import SiriusConfig
    from sirius_rec.training.records import draw_options

    whole, _ = filled(
        run, mini(*DRAWN[1:], "arms=[softmax_ref_free, {loss: softmax_dpo, negatives: all}]"), monkeypatch
    )
    everything = whole.read()["train"]
    assert not np.isnan(np.concatenate(everything)).any()
    n_val = len(np.concatenate(whole.read()["val"]))
    run.folder.reference(0).unlink()
    few, asked = filled(run, mini(*DRAWN, "arms=[dpo, simpo]"), monkeypatch)
    first = few.read()["train"]
    # every row is drawn in one of two epochs of twenty, with its target, a negative and another one
    assert sum(asked) == 3 * len(everything) + n_val and len(everything) == 40
    more, asked = filled(run, mini(*DRAWN, "arms=[dpo, {loss: softmax_dpo, negatives: 3}]"), monkeypatch)
    second = more.read()["train"]
    assert sum(asked) == 2 * len(everything), "something that was there was scored again, or something is missing"
    for loss, cache in (({"loss": "dpo"}, first), ({"loss": "softmax_dpo", "negatives": 3}, second)):
        args = SiriusConfig(output_dir="unused", score_unsampled=1, examples_per_epoch=20, seed=0, use_cpu=True, **loss)
        draws = PreferenceDataset(few.rows["train"], **draw_options(args, 5)).columns_drawn(2)
        for logp_C, all_C, columns in zip(cache, everything, draws, strict=True):
            np.testing.assert_allclose(logp_C[columns], all_C[columns], atol=1e-4)
            assert np.isnan(np.delete(logp_C, columns)).all()
    for old, new in zip(first, second, strict=True):
        np.testing.assert_array_equal(new[~np.isnan(old)], old[~np.isnan(old)])
    _, asked = filled(run, mini(*DRAWN, "arms=[dpo]"), monkeypatch)
    assert not asked, "fewer arms need nothing new"


def test_a_cache_from_before_draws_were_counted_holds_all(run: Run) -> None:
    with np.load(run.folder.reference(0)) as stored:
        arrays = {name: stored[name] for name in stored if not name.endswith("_scored")}
    np.savez(run.folder.reference(0), **arrays)
    assert reference.ReferenceCache(run, 0).complete


def test_an_arm_that_draws_more_than_is_there_is_not_trained(run: Run, mini: Callable[..., Config]) -> None:
    run.folder.reference(0).unlink()
    adopt(run.folder, mini(*DRAWN, "arms=[dpo]"))
    reference.reference(str(run.folder.path), 0)
    adopt(run.folder, mini(*DRAWN, "arms=[dpo, {loss: softmax_dpo, negatives: 3}]"))
    with pytest.raises(RunError, match="the reference cache is missing"):
        scoring.fit(str(run.folder.path), "softmax_dpo", 0)


@pytest.mark.parametrize(
    ("arms", "more", "expected"),
    [
        ("[dpo]", (), 3),
        ("[dpo, {loss: softmax_dpo, negatives: 4}]", (), 6),
        ("[{loss: dpo, negatives_from: hard, pool: 3}]", (), 5),
        ("[{loss: dpo, negatives_from: on_policy}]", (), None),
        ("[{loss: dpo, negatives_from: on_policy}, dpo_nll]", (), 3),
        ("[simpo, softmax_ref_free]", (), None),
        ("[{loss: softmax_dpo, negatives: all}]", (), "all"),
        ("[{loss: dpo_sirius, anchor: slate}]", (), "all"),
        ("[dpo]", ("tune.spaces={dpo: {beta: [1, 2], learning_rate: [1e-4]}}",), 3),
        ("[dpo]", ("tune.spaces={dpo: {negatives: [1, 3]}}",), "all"),
        ("[{loss: dpo, name: mine}]", ("tune.spaces={mine: {negatives_from: [slate, hard]}}",), "all"),
    ],
)
def test_the_most_that_an_arm_draws(
    mini: Callable[..., Config], arms: str, more: tuple[str, ...], expected: int | str | None
) -> None:
    given = ("prompts.slate=false", "align.score_unsampled=2", "evaluation.baseline=sft")
    config = mini(*given, f"arms={arms}", *more)
    assert reference.drawn_at_most(config, 9) == expected
    assert reference.drawn_at_most(config.changed(align=config.align.changed(score_unsampled="all")), 9) == (
        expected and "all"
    )
