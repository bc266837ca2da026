"""`SequentialRanker`: training with early stopping, scoring, saving and loading."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sirius_rec import atomic
from sirius_rec.errors import ConfigError, DataError, RunError, ScoringError, TrainingError
from sirius_rec.evaluation.metrics import per_example
from sirius_rec.rankers.protocol import UNSEEN, Items, check_rows
from sirius_rec.rankers.sequential.chunks import chunks, left_padded, windows
from sirius_rec.rankers.sequential.losses import LOSSES
from sirius_rec.rankers.sequential.networks import NETWORKS, Network
from sirius_rec.rankers.sequential.options import SequentialOptions
from sirius_rec.rankers.sequential.rectools import RECTOOLS_NETWORKS
from sirius_rec.rankers.sequential.resuming import ProgressFile, Reached

Floats = npt.NDArray[np.floating[Any]]
_ROWS = 1024


@dataclass(frozen=True)
class Validation:
    """Slates for early stopping: histories and candidates as in `Ranker.score`, and the column of each target."""

    histories: Sequence[Items]
    candidates: Sequence[Items]
    target: npt.NDArray[np.integer[Any]]


class SequentialRanker:
    """A next-item network behind the `Ranker` protocol.

    Only the newest `length` items of a history are read. An empty history is one padding item: the network then ranks
    by what usually comes first. An item that no training sequence holds scores UNSEEN, below all others.
    """

    def __init__(self, options: SequentialOptions, seed: int = 0) -> None:
        self.options, self.seed = options, seed
        self.network: Network | None = None
        self.seen_I: npt.NDArray[np.bool_] | None = None
        self.history: list[dict[str, float]] = []
        self.seconds = 0.0

    def fit(
        self,
        sequences: Sequence[Items],
        n_items: int,
        validation: Validation | None = None,
        *,
        progress: Callable[[str], None] | None = None,
        keep: Path | None = None,
    ) -> SequentialRanker:
        """Train on whole user sequences (oldest first). Without `validation` all epochs are trained.

        keep: a file that is written after every epoch, and gone on from if it is there.

        Raises DataError for an item outside the catalogue or no sequence of two items, TrainingError for a loss that
        is not finite. `history` holds loss and validation metrics per epoch, `seconds` what it took.
        """
        if self.options.weight_decays:
            return self._fit_grid(sequences, n_items, validation, progress, keep)
        histories = [np.asarray(s, dtype=np.int64) for s in sequences if len(s) > 1]
        if not histories:
            raise DataError("no training sequence has two items; there is nothing to predict")
        flat = np.concatenate([np.asarray(s, dtype=np.int64) for s in sequences])
        if flat.min() < 0 or flat.max() >= n_items:
            raise DataError(f"a training sequence holds item {flat.min() if flat.min() < 0 else flat.max()}, the "
                            f"catalogue has {n_items} items (0 … {n_items - 1})")  # fmt: skip
        started = time.monotonic()
        self.seen_I = self._known_items(flat, n_items)
        torch.manual_seed(self.seed)
        self.network = network = self._build(n_items)
        options, rng = self.options, np.random.default_rng([self.seed, 7])
        generator = torch.Generator().manual_seed(self.seed)
        kind = torch.optim.AdamW if options.decoupled else torch.optim.Adam
        optimiser = kind(self._parameter_groups(network), lr=options.learning_rate, weight_decay=options.weight_decay)
        file = ProgressFile(keep, options, self.seed, histories)
        reached = file.load(network, optimiser, rng, generator)
        before, self.history = reached.seconds, reached.history
        while reached.epoch < options.epochs and (options.patience is None or reached.since < options.patience):
            reached.epoch += 1
            point = {"epoch": float(reached.epoch), "loss": self._epoch(histories, optimiser, rng, generator)}
            # A last step may leave weights that no loss of the epoch has seen.
            whole = all(bool(torch.isfinite(weight).all()) for weight in network.parameters())
            if not (np.isfinite(point["loss"]) and whole):
                raise TrainingError(
                    f"{options.network}: loss or weights are not finite in epoch {reached.epoch}: lower learning_rate"
                )
            if validation is not None:
                point |= self._validate(validation)
                self._note_best(reached, point["ndcg@10"])
            reached.history.append(point)
            reached.seconds = before + time.monotonic() - started
            file.save(reached, network, optimiser, rng, generator)
            if progress:
                metrics = "".join(f"  {name} {point[name]:.4f}" for name in ("hr@1", "ndcg@10") if name in point)
                progress(f"epoch {reached.epoch}  loss {point['loss']:.3f}{metrics}")
        if reached.best_state is not None:
            network.load_state_dict(reached.best_state)
        network.eval()
        self.seconds = before + time.monotonic() - started
        return self

    def _fit_grid(
        self,
        sequences: Sequence[Items],
        n_items: int,
        validation: Validation | None,
        progress: Callable[[str], None] | None,
        keep: Path | None,
    ) -> SequentialRanker:
        """Every weight decay of the grid; self becomes the best by validation NDCG@10.

        Its options then say which one that is, and fitted again it trains that one alone.
        """
        if validation is None:
            raise ConfigError("weight_decays: a grid is chosen from by validation slates; give one weight_decay")
        best, seconds = None, 0.0
        for weight_decay in self.options.weight_decays:
            one = copy(self)
            one.options = self.options.changed(weight_decay=weight_decay, weight_decays=())
            name = f"weight_decay {weight_decay:g}"
            say = (lambda line, name=name: progress(f"{name}  {line}")) if progress else None
            its_own = keep.with_stem(f"{keep.stem}-{weight_decay!r}") if keep else None
            one.fit(sequences, n_items, validation, progress=say, keep=its_own)
            seconds += one.seconds
            if best is None or one.best_ndcg > best.best_ndcg:
                best = one
        assert best is not None
        vars(self).update(vars(best), seconds=seconds)
        return self

    @property
    def best_ndcg(self) -> float:
        """The highest validation NDCG@10 of any epoch: that of the weights kept."""
        return max(point["ndcg@10"] for point in self.history)

    def _note_best(self, reached: Reached, ndcg: float) -> None:
        assert self.network is not None
        if ndcg > reached.best:
            reached.best, reached.since = ndcg, 0
            reached.best_state = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        else:
            reached.since += 1

    def _known_items(self, flat: Items, n_items: int) -> npt.NDArray[np.bool_]:
        """Which items can be scored, given all items of all training sequences."""
        seen_I = np.zeros(n_items, dtype=bool)
        seen_I[flat] = True
        return seen_I

    def _build(self, n_items: int) -> Network:
        return build_network(self.options, n_items)

    def _parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        return [{"params": list(network.parameters())}]

    def _before_step(self, items_BT: Tensor, target_BT: Tensor) -> None:
        """For networks whose items cost something to compute. Padding is n_items in items_BT, −1 in target_BT."""

    def _epoch(
        self, sequences: Sequence[Items], optimiser: torch.optim.Optimizer, rng: np.random.Generator, generator: Any
    ) -> float:
        assert self.network is not None
        options, network = self.options, self.network
        network.train()
        history_NT, target_NT = (
            windows(sequences, options.length, rng, options.shuffle)
            if options.windows or not network.every_position
            else chunks(sequences, options.length, rng, options.shuffle)
        )
        history_NT[history_NT < 0] = network.n_items
        total, count = 0.0, 0
        order = rng.permutation(len(history_NT))
        for start in range(0, len(order), options.batch_size):
            rows = order[start : start + options.batch_size]
            items_BT = torch.from_numpy(history_NT[rows])
            target_BT = torch.from_numpy(target_NT[rows])
            self._before_step(items_BT, target_BT)
            states_BTD = network(items_BT)[:, -target_BT.shape[1] :]
            trained_BT = target_BT >= 0
            loss = LOSSES[options.loss](
                network, states_BTD[trained_BT], target_BT[trained_BT], options.negatives, generator
            )
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
            optimiser.step()
            total, count = total + float(loss.detach()), count + 1
        network.eval()
        return total / count

    def _validate(self, validation: Validation) -> dict[str, float]:
        metrics = per_example(self.score(validation.histories, validation.candidates), validation.target)
        return {name: float(metrics[name].to_numpy().mean()) for name in ("hr@1", "ndcg@10")}

    @torch.no_grad()
    def score(self, histories: Sequence[Items], candidates: Sequence[Items]) -> list[Floats]:
        """float32 scores per row, aligned with its candidates."""
        if self.network is None or self.seen_I is None:
            raise ScoringError(f"{self.options.network}: not fitted; call fit(sequences, n_items) first")
        n_items = self.network.n_items
        check_rows(histories, candidates, n_items)
        out: list[Floats] = []
        for start in range(0, len(histories), _ROWS):
            slates = [np.asarray(c, dtype=np.int64) for c in candidates[start : start + _ROWS]]
            recent = [np.asarray(h, dtype=np.int64)[-self.options.length :] for h in histories[start : start + _ROWS]]
            state_BD = self.network(torch.from_numpy(left_padded(recent, n_items, self.options.length)))[:, -1]
            items_BC = left_padded(slates, 0)
            width = items_BC.shape[1]
            scores_BC = self.network.scores(state_BD, torch.from_numpy(items_BC)).numpy().copy()
            scores_BC[~self.seen_I[items_BC]] = UNSEEN
            out += [scores_BC[b, width - len(row) :] for b, row in enumerate(slates)]
        return out

    def save(self, folder: Path) -> None:
        """Weights, options and the items seen, atomically."""
        if self.network is None or self.seen_I is None:
            raise ScoringError(f"{self.options.network}: nothing to save before fit")
        tensors = {**self.network.state_dict(), "seen": torch.from_numpy(self.seen_I)}
        with atomic.replacing(folder / "weights.safetensors") as partial:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, partial)
        atomic.write_text(folder / "ranker.json", json.dumps(self._content(), indent=1) + "\n")

    def _content(self) -> dict[str, Any]:
        """What ranker.json holds."""
        return {"options": self.options.model_dump(), "seed": self.seed, "history": self.history}

    @classmethod
    def load(cls, folder: Path) -> SequentialRanker:
        """What `save` wrote; RunError if it is not there or damaged."""
        try:
            content = json.loads((folder / "ranker.json").read_text())
            ranker = cls(SequentialOptions(**content["options"]), content["seed"])
            ranker._read(folder, content)
        except Exception as error:  # safetensors, torch and json each raise their own
            raise RunError(
                f"{folder}: not a saved ranker ({type(error).__name__}): delete it and train again"
            ) from error
        return ranker

    def _read(self, folder: Path, content: dict[str, Any]) -> None:
        tensors = load_file(folder / "weights.safetensors")
        self.history = content["history"]
        self.seen_I = tensors.pop("seen").numpy()
        self.network = self._build(len(self.seen_I))
        self.network.load_state_dict(tensors)
        self.network.eval()

    @property
    def parameters(self) -> int:
        """Number of trained parameters."""
        return 0 if self.network is None else sum(p.numel() for p in self.network.parameters() if p.requires_grad)


def build_network(options: SequentialOptions, n_items: int) -> Network:
    parts: dict[str, Any] = {
        name: getattr(options, name) for name in ("dimension", "layers", "heads", "dropout", "length")
    }
    return {**NETWORKS, **RECTOOLS_NETWORKS}[options.network](n_items, **parts)
