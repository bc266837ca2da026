"""Next-item networks without a language model: GRU4Rec, Caser, SASRec, RecTools', and MoRec, which reads titles."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sirius_rec.atomic import write_json
from sirius_rec.config import Config, MethodSection
from sirius_rec.errors import ConfigError
from sirius_rec.extras import require
from sirius_rec.rankers.sequential.options import PRESETS, TINY_ENCODER, SequentialOptions, morec_options, with_options
from sirius_rec.recipes.job import log
from sirius_rec.recipes.methods.base import Method, alone, no_preset
from sirius_rec.recipes.run import Run
from sirius_rec.recipes.run_folder import DONE, read_done
from sirius_rec.schema import CANDIDATES, HISTORY, TARGET, SlateName

if TYPE_CHECKING:
    from sirius_rec.rankers.sequential.ranker import SequentialRanker, Validation


class NetworkMethod(Method):
    """A network that is trained on whole histories, and stops by validation slates."""

    own_seeds = True

    def __init__(self, config: Config, entry: MethodSection) -> None:
        super().__init__(config, entry)
        if "network" in entry.options:
            raise ConfigError(f"unknown option 'network' of {self.name}: the method names the network")
        self.options = self._options(entry)

    def _options(self, entry: MethodSection) -> SequentialOptions:
        if self.name not in PRESETS[entry.preset]:
            no_preset(self.name, entry.preset)
        return with_options(PRESETS[entry.preset][self.name], **entry.options)

    @property
    def random(self) -> bool:
        return True

    def check(self, run: Run) -> None:
        if self.chooses:
            require_validation(run)

    @property
    def chooses(self) -> bool:
        """Whether validation slates say where it stops, or which of a grid it is."""
        return self.options.patience is not None or bool(self.options.weight_decays)

    def settled(self, run: Run, seed: int) -> Config:
        return alone(run.config, self.settled_entry(self.folder(run, seed)))

    def settled_entry(self, folder: Path) -> MethodSection:
        """Its entry, with what the training in `folder` chose: the epoch whose weights it kept, and a weight decay."""
        history = _history(folder)
        given = {name: value for name, value in self.entry.options.items() if name != "weight_decays"}
        best = _best(history) if any("ndcg@10" in point for point in history) else history[-1]
        chosen = {"epochs": int(best["epoch"]), "patience": None, "weight_decay": read_done(folder)["weight_decay"]}
        return self.entry.changed(options={**given, **chosen}, seeds=None)

    def _new(self, run: Run, seed: int) -> SequentialRanker:
        from sirius_rec.rankers.sequential.ranker import SequentialRanker

        return SequentialRanker(self.options, seed)

    def fit(self, run: Run, seed: int) -> None:
        if not self.is_done(run, seed):
            self.trained(run, seed, self.folder(run, seed))

    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        return self.trained(run, seed, self.folder(run, seed))

    def validation_hit(self, run: Run, seed: int) -> float | None:
        hit = _best(_history(self.folder(run, seed))).get("hr@1")
        return None if hit is None else float(hit)

    def trained(self, run: Run, seed: int, folder: Path) -> SequentialRanker:
        """The ranker in `folder`, trained and saved there first if need be."""
        from sirius_rec.rankers.sequential.morec import load_ranker

        if (folder / DONE).is_file():
            return load_ranker(folder)
        unfinished = folder / "unfinished.pt"
        ranker = self._new(run, seed).fit(
            run.dataset.train_sequences(),
            run.dataset.n_items,
            validation(run) if self.chooses or run.validation_slates else None,
            progress=lambda line: log(f"{self.key} s{seed}  {line}"),
            keep=unfinished,
        )
        ranker.save(folder)
        write_json(
            folder / DONE,
            {
                "parameters": ranker.parameters,
                "seconds": round(ranker.seconds, 1),
                "epochs": len(ranker.history),
                "weight_decay": ranker.options.weight_decay,
            },
        )
        for file in folder.glob(f"{unfinished.stem}*{unfinished.suffix}"):  # one for each value of a grid
            file.unlink()
        return ranker


def _history(folder: Path) -> list[dict[str, float]]:
    """Loss and, with validation slates, metrics of every epoch of the training in a folder."""
    return list(json.loads((folder / "ranker.json").read_text())["history"])


def _best(history: list[dict[str, float]]) -> dict[str, float]:
    """The epoch whose weights are kept: that with the best NDCG@10."""
    return max(history, key=lambda point: point.get("ndcg@10", -1.0), default={})


class Gru4Rec(NetworkMethod):
    name, title = "gru4rec", "GRU4Rec"


class Caser(NetworkMethod):
    name, title = "caser", "Caser"


class SasRec(NetworkMethod):
    name, title = "sasrec", "SASRec"

    @classmethod
    def shared(cls, config: Config) -> MethodSection | None:
        """The run's own, if it has one: of the tuned preset (options may differ), and not named as ablations are."""
        return next((m for m in config.methods if m.method == m.key == cls.name and m.preset == "tuned"), None)


class RecToolsMethod(NetworkMethod):
    """A network whose encoder is RecTools'."""

    def check(self, run: Run) -> None:
        require("rectools")
        super().check(run)


class ESasRec(RecToolsMethod):
    name, title = "esasrec", "eSASRec (RecTools)"


class Hstu(RecToolsMethod):
    name, title = "hstu", "HSTU (RecTools, without times)"


class SasRecOfRecTools(RecToolsMethod):
    name, title = "sasrec_rectools", "SASRec (RecTools)"


class MoRec(NetworkMethod):
    name, title = "morec", "MoRec (SASRec over titles)"

    @property
    def label(self) -> str:
        """The publication's encoders are pretrained; the default one here is not."""
        scratch = self.options.encoder == TINY_ENCODER and not self.entry.name  # type: ignore[attr-defined]
        return (
            super().label.replace(self.title, f"{self.title[:-1]}, encoder from scratch)") if scratch else super().label
        )

    def _options(self, entry: MethodSection) -> SequentialOptions:
        return morec_options(PRESETS[entry.preset][SasRec.name], **entry.options)

    def check(self, run: Run) -> None:
        from sirius_rec.rankers.sequential.encoders import check_encoder

        super().check(run)
        check_encoder(self.options.encoder)  # type: ignore[attr-defined]

    def _new(self, run: Run, seed: int) -> SequentialRanker:
        from sirius_rec.rankers.sequential.morec import MoRecRanker

        vectors = self.folder(run, seed).parent / "titles.npz"
        return MoRecRanker(self.options, run.dataset.titles, seed, vectors=vectors)  # type: ignore[arg-type]


def require_validation(run: Run) -> SlateName:
    """The slates to stop by; ConfigError where there are none."""
    if (name := run.validation_slates) is None:
        raise ConfigError(
            "data.slates: trained methods stop by val slates of the protocol and size that they train on, and there "
            "are none: let that entry cover val, and the split have rows for it"
        )
    return name


def validation(run: Run) -> Validation:
    """The validation slates that language models are watched on too."""
    from sirius_rec.evaluation.metrics import target_positions
    from sirius_rec.rankers.sequential.ranker import Validation

    slates = run.dataset.slates(require_validation(run))
    examples, rows = run.dataset.examples("val"), run.validation_rows
    histories = [np.asarray(h) for h in examples[HISTORY].gather(rows.tolist()).to_list()]
    candidates = [np.asarray(c) for c in slates[CANDIDATES].gather(rows.tolist()).to_list()]
    return Validation(histories, candidates, target_positions(candidates, examples[TARGET].to_numpy()[rows]))
