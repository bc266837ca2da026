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
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.prompts.templates import TEMPLATES
from sirius_rec.recipes import models, reference, scoring
from sirius_rec.recipes import records as recipe_records
from sirius_rec.recipes.arguments import training_arguments
from sirius_rec.recipes.methods import build_methods
from sirius_rec.recipes.methods.arms import Arm
from sirius_rec.recipes.run import Run
from sirius_rec.schema import SlateName
from sirius_rec.scoring import kept, scorer
from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.training import logp_shards
from sirius_rec.training.records import PreferenceDataset
from sirius_rec.training.streaming import training_data


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
    run.folder.write_config(mini("evaluation.batch_tokens=500"))
    run.folder.reference(0).unlink()
    reference.score_reference(str(run.folder.path), 0)
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
        reference.score_reference(str(run.folder.path), 0)
    done, said[:] = sum(said), []
    monkeypatch.setattr(reference, "Ticker", lambda name, total: said.append)
    reference.score_reference(str(run.folder.path), 0)
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
    with pytest.raises(RunError, match=r"s0\.npz: the reference cache is missing, of another model, or"):
        reference.read_reference(run, 0)


@pytest.mark.parametrize(
    "override",
    [
        "prompts.template=music",
        "prompts.slate=false",
        "align.examples_per_epoch=9",
        "compute.scoring=naive",
        "backbone.compile=true",
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
    reference.score_reference(str(run.folder.path), 0)
    again, before = (reference.read_reference(one, 0) for one in (run, trained))
    for split in ("train", "val"):
        assert np.array_equal(np.concatenate(again[split]), np.concatenate(before[split]))


def test_a_whole_cache_is_kept(run: Run) -> None:
    before = run.folder.reference(0).stat().st_mtime_ns
    reference.score_reference(str(run.folder.path), 0)
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
    run.folder.write_config(config)
    with monkeypatch.context() as patch:
        patch.setattr(scorer, "score_rows", counted)
        reference.score_reference(str(run.folder.path), 0)
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


@pytest.mark.parametrize(
    "options",
    [("training.share=user",), ("training.stream=true",), ("align.batch_size=20", "align.micro_batch_size=4")],
)
def test_every_draw_of_every_arm_is_there(run: Run, mini: Callable[..., Config], options: tuple[str, ...]) -> None:
    """As the trainer draws, of a seed that is not 0, whose epochs are fewer examples than there are rows."""
    shutil.copytree(run.folder.sft(0), run.folder.sft(1))
    arms = "arms=[dpo, {loss: softmax_dpo, negatives: 2}, {loss: dpo, name: hard, negatives_from: hard, pool: 3}]"
    config = mini(
        "seeds=[0,1]", "align.epochs=3", "align.examples_per_epoch=20", "align.score_unsampled=1", arms, *options
    )
    run.folder.write_config(config)
    reference.score_reference(str(run.folder.path), 1)
    run = Run.open(run.folder.path)
    found, records = reference.read_reference(run, 1)["train"], reference.ReferenceCache(run, 1).records["train"]
    read, stream = set(), config.training.stream
    for arm in (method for method in build_methods(config).values() if isinstance(method, Arm)):
        args = training_arguments(
            config, config.align, run.folder.path, arm.loss_options(), 1, n_records=len(records), best_by=None,
            share=config.training.share, stream=stream,
        )  # fmt: skip
        data, _ = training_data(records, args, run.encoder, lambda rows: None)
        for epoch in range(3):
            data.set_epoch(epoch)
            for slot in range(len(data)):
                draw = data[slot]
                assert np.isfinite(found[draw.row][draw.columns]).all(), f"{arm.key}, epoch {epoch}, row {draw.row}"
                read |= {(draw.row, column) for column in draw.columns.tolist()}
    scored = {(row, column) for row in range(len(found)) for column in np.flatnonzero(np.isfinite(found[row]))}
    # in files any epoch may have a row, and is scored for
    assert scored >= read if stream else scored == read
    assert len(scored) < 6 * len(found)


def test_files_of_more_than_is_wanted_are_taken(
    run: Run, mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of fewer epochs or fewer candidates are not, nor those that do not say what they hold."""
    given = (*DRAWN[:2], "training.stream=true")
    wide = "arms=[dpo, {loss: softmax_dpo, negatives: 3}]"
    first, asked = filled(run, mini(*given, "align.epochs=2", "arms=[dpo]"), monkeypatch)
    n = len(first.rows["train"])
    assert sum(asked) > 3 * n
    wider, asked = filled(run, mini(*given, "align.epochs=2", wide), monkeypatch)
    assert sum(asked) > 5 * n and not np.isnan(wider.read()["train"][0]).all()
    again, asked = filled(run, mini(*given, "align.epochs=2", "arms=[dpo]"), monkeypatch)
    assert not asked and again.complete
    key_file = run.folder.reference_shards(0) / "key.txt"
    assert key_file.read_text() == f"{again.key} 4 2"
    for held, complete in (("", False), (" all 1", True), (" 4 1", False), (" 1 2", False), (" 2 2", True)):
        key_file.write_text(again.key + held)
        assert reference.ReferenceCache(Run.open(run.folder.path), 0).complete == complete, held
    key_file.write_text(f"{'0' * 64} 4 2")
    assert not reference.ReferenceCache(Run.open(run.folder.path), 0).complete, "another model's"


@pytest.mark.parametrize("validated", [True, False])
def test_files_are_not_whole_without_the_archive(
    run: Run, mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, validated: bool
) -> None:
    """It is written last, also where no validation lies in it."""
    if not validated:
        monkeypatch.setattr(reference, "validation_set", lambda run: None)
    cache, _ = filled(run, mini(*DRAWN, "training.stream=true", "arms=[dpo]"), monkeypatch)
    assert cache.complete and set(cache.read()) == ({"train", "val"} if validated else {"train"})
    run.folder.reference(0).unlink()
    assert not cache.complete


@pytest.mark.parametrize("stream", ["false", "true"])
def test_a_kernel_that_is_chosen_for_it_is_in_its_key(
    run: Run, mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch, stream: str
) -> None:
    """On CUDA the first model that is loaded is timed. Under the key from before, it would be scored once more."""
    run.folder.reference(0).unlink()
    monkeypatch.setattr(reference, "on_cpu", lambda config: False)
    monkeypatch.setattr(
        reference, "select_attention", lambda folder, *rest: (folder.path / models.ATTENTION).write_text("{}")
    )
    run.folder.write_config(mini(*DRAWN, f"training.stream={stream}", "arms=[dpo]"))
    cache = reference.ReferenceCache(Run.open(run.folder.path), 0)
    before = cache.key
    assert not cache.complete
    cache.fill()
    assert cache.complete and cache.key != before
    assert reference.ReferenceCache(Run.open(run.folder.path), 0).complete


def test_files_under_way_are_finished_as_they_were_begun(
    run: Run, mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A scoring for more was killed, and fewer are wanted now: each file of the folder holds the same candidates."""
    given = (*DRAWN, "training.stream=true")
    monkeypatch.setattr(logp_shards, "_ROWS", 16)
    filled(run, mini(*given, "arms=[dpo, {loss: softmax_dpo, negatives: 3}]"), monkeypatch)
    whole = [logp_C.copy() for logp_C in reference.ReferenceCache(Run.open(run.folder.path), 0).read()["train"]]
    (run.folder.reference_shards(0) / "000001.npy").unlink()
    fewer, asked = filled(run, mini(*given, "arms=[dpo]"), monkeypatch)
    assert asked
    for before, now in zip(whole, fewer.read()["train"], strict=True):
        np.testing.assert_allclose(now, before, atol=1e-5)


def test_a_killed_scoring_for_other_arms_is_not_gone_on_with(
    run: Run, mini: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    run.folder.reference(0).unlink()
    monkeypatch.setattr(kept, "_EVERY", 0.0)
    calls: list[int] = []

    def kill(count: int) -> None:
        calls.append(count)
        if len(calls) == 2:
            raise KeyboardInterrupt

    run.folder.write_config(mini(*DRAWN, "evaluation.batch_tokens=500", "arms=[{loss: softmax_dpo, negatives: 3}]"))
    with monkeypatch.context() as patch:
        patch.setattr(reference, "Ticker", lambda name, total: kill)
        with pytest.raises(KeyboardInterrupt):
            reference.score_reference(str(run.folder.path), 0)
    assert list(run.folder.reference(0).parent.glob(".*coming/*.npz"))
    config = mini(*DRAWN, "evaluation.batch_tokens=500", "arms=[dpo]")
    fewer, asked = filled(run, config, monkeypatch)
    n = len(fewer.rows["train"])
    assert sum(asked) == 3 * n + len(np.concatenate(fewer.read()["val"]))
    assert [path.name for path in run.folder.reference(0).parent.iterdir()] == ["s0.npz"]


@pytest.mark.parametrize("part", ["val", "train", "train_scored", "val_length"])
def test_every_part_belongs_to_it(run: Run, part: str) -> None:
    """Whether rows were scored, too, or a damaged cache ends in an error that names no way out."""
    with np.load(run.folder.reference(0)) as stored:
        arrays = {name: stored[name] for name in stored if not name.startswith(part)}
    np.savez(run.folder.reference(0), **arrays)
    assert not reference.ReferenceCache(run, 0).complete


def test_a_pool_beyond_the_slate_names_its_arm(mini: Callable[..., Config]) -> None:
    config = mini("align.score_unsampled=0", "arms=[dpo, {loss: dpo, name: hard, negatives_from: hard, pool: 3}]")
    with pytest.raises(ConfigError, match="arms: hard: pool 3: a record has only 2 rejected completions"):
        reference.drawn_at_most(config, 2)


def test_an_arm_that_draws_more_than_is_there_is_not_trained(run: Run, mini: Callable[..., Config]) -> None:
    run.folder.reference(0).unlink()
    run.folder.write_config(mini(*DRAWN, "arms=[dpo]"))
    reference.score_reference(str(run.folder.path), 0)
    run.folder.write_config(mini(*DRAWN, "arms=[dpo, {loss: softmax_dpo, negatives: 3}]"))
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
        ("[{loss: dpo, name: mine}]", ("tune.spaces={dpo: {comparison: [pairwise]}}",), "all"),
        ("[dpo, softmax_ref_free]", ("tune.spaces={softmax_ref_free: {reward: [simpo_no_ln, dpo]}}",), "all"),
        (
            "[{loss: dpo, negatives_from: on_policy}]",
            ("tune.spaces={dpo: {negatives_from: [on_policy, hard]}}",),
            "all",
        ),
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
