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
from sirius_rec.scoring import kept


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
    before = reference._reference_key(run, 0)
    assert before == reference._reference_key(trained, 0)
    weights = run.folder.sft(0) / "best" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert reference._reference_key(run, 0) != before
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
    keys = {reference._reference_key(Run(trained.folder, config), 0) for config in (mini(), mini(override))}
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
    before = reference._reference_key(trained, 0)
    words = replace(TEMPLATES["generic"], answer="What comes next:")
    monkeypatch.setitem(TEMPLATES, "generic", words)
    assert reference._reference_key(trained, 0) != before


def test_the_key_changes_with_the_configuration_of_the_model(run: Run) -> None:
    """Another rope or activation with the same weights is another model."""
    before = reference._reference_key(run, 0)
    file = run.folder.sft(0) / "best" / "config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({**content, "rms_norm_eps": 1e-3}))
    assert reference._reference_key(run, 0) != before
