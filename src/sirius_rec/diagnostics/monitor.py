"""`RewardHackingMonitor`: a callback that watches whole held-out slates in any transformers Trainer."""

from __future__ import annotations

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerCallback

from sirius_rec import atomic, processes
from sirius_rec.diagnostics.golden import GoldenFit
from sirius_rec.diagnostics.onset import Onset, find_onset
from sirius_rec.diagnostics.slates import hits, slate_measures
from sirius_rec.diagnostics.trajectory import golden_of
from sirius_rec.errors import ConfigError, DataError
from sirius_rec.objectives.evidence import evidence
from sirius_rec.objectives.losses import Objective, reward_of, rounding_of
from sirius_rec.objectives.parts import REWARDS
from sirius_rec.prompts.encoding import Encoder
from sirius_rec.scoring.rows import BATCH_TOKENS
from sirius_rec.scoring.scorer import check_once, score_rows
from sirius_rec.training.config import SiriusConfig
from sirius_rec.training.held_out import HeldOutLog, Snapshot, read_context, read_held_out
from sirius_rec.training.inputs import check_logps, records_of
from sirius_rec.training.metrics_log import MetricsLog, read_metrics
from sirius_rec.training.records import encode_records, numbered


class RewardHackingMonitor(TrainerCallback):
    """Scores the same held-out slates at chosen steps and records what reward hacking looks like.

    records: held-out preference records (`prompt`, `chosen`, `rejected`: a list of at least two texts; `user`), in any
        container that `SiriusTrainer` takes. Never trained on, nor used to choose the checkpoint that training starts
        from (the onset would be found twice as often as it should where there is none). tokenizer: the policy's.
    every: evaluate after every so many optimiser steps, besides the start and the end of training.
    reward, beta: how log-probs become rewards (nats times β): a name in `objectives.parts.REWARDS` ("dpo", "dpo_ln",
        "simpo", "simpo_no_ln", "inverse_perplexity", …) and β > 0. None takes the trainer's: those of a `SiriusConfig`,
        β of TRL's `DPOConfig` (0.1 unless it says otherwise); anywhere else "dpo" and 1.0, as in `Objective`. What is
        given stays, and a warning says where the trainer has another.
    ref_logps: log π_ref per record and completion (nats, summed over tokens, the chosen first); None takes the model at
        the start of training, or of the first evaluation, as the reference.
    negatives: how many of the rejected count as sampled, drawn once by `seed`; the others are the unsampled ones.
    users: one id per record: records of one user depend on each other (for the test of the onset). None takes the
        records' `user`, which all of them have or none.
    popularity: text → popularity, for the popularity of the top choice.
    generation_rows: answer so many prompts greedily each time, for `valid_ratio` (slow; 0: never).
    folder: where metrics.jsonl and held_out/ are written as training goes on, of one training at a time: one that
        begins at step 0 removes what is there. None keeps everything in memory.

    A training that begins at step 0 begins points, folder and reference anew; one that goes on takes up what was
    evaluated before its step. Without a Trainer call `evaluate`.

    `points` holds one dictionary per evaluation: step, epoch, hr@1, the evidence of `objectives.evidence` (margins,
    insensitive shares, misordered pairs) and `slate_measures` (rank, kl, distance, entropy, logp_drift, …).
    """

    def __init__(
        self,
        records: Any,
        tokenizer: Any,
        *,
        every: int = 100,
        reward: str | None = None,
        beta: float | None = None,
        ref_logps: Sequence[np.ndarray] | None = None,
        negatives: int = 1,
        epsilons: Sequence[float] = (0.1, 0.5),
        users: Sequence[Any] | None = None,
        popularity: Mapping[str, float] | None = None,
        generation_rows: int = 0,
        folder: Path | str | None = None,
        chat: bool = False,
        scoring: str = "auto",
        batch_tokens: int = BATCH_TOKENS,
        seed: int = 0,
    ) -> None:
        if reward is not None and reward not in REWARDS:
            raise ConfigError(f"unknown reward '{reward}': choose one of {', '.join(REWARDS)}")
        if every < 1 or (beta is not None and not beta > 0):
            raise ConfigError(f"every must be at least 1 and beta positive, got {every} and {beta}")
        self.encoder = Encoder(tokenizer, chat=chat)
        self.records = list(records_of(records, "records"))
        self.rows = encode_records(self.records, self.encoder)
        _check_negatives(negatives, [len(row.completions) - 1 for row in self.rows])
        users = _users_of(self.records) if users is None else users
        if users is not None and len(users) != len(self.rows):
            raise DataError(f"{len(users)} users for {len(self.rows)} records: give one per record")
        if ref_logps is not None:
            check_logps("ref_logps", ref_logps, self.rows)
        if generation_rows and not isinstance(self.records[0]["prompt"], str):
            raise ConfigError("generation_rows: answers are generated for text prompts, not for chat messages")
        self.every, self.epsilons = every, tuple(epsilons)
        self._reward, self._beta = reward, beta
        self._given = None if ref_logps is None else [np.asarray(row, dtype=np.float32) for row in ref_logps]
        self._users: Any = None if users is None else numbered(users)
        self.reference, self.users = self._given, self._users
        self._begun = False
        self._scale_as(None)
        self.generation_rows = min(generation_rows, len(self.rows))
        self.scoring, self.batch_tokens = scoring, batch_tokens
        self.popularity_R = None
        if popularity is not None:
            texts = [[r["chosen"], *_listed(r["rejected"])] for r in self.records]
            self.popularity_R = [np.array([popularity.get(t, 0.0) for t in row], dtype=np.float64) for row in texts]
        self.points: list[dict[str, Any]] = []
        self.snapshots: list[Snapshot] = []
        self.metrics_log = MetricsLog(Path(folder) / "metrics.jsonl") if folder is not None else None
        self.held_out_log = HeldOutLog(Path(folder) / "held_out") if folder is not None else None
        self._draw(negatives, seed)

    def _draw(self, negatives: int, seed: int) -> None:
        """Which columns of the rows are real, which count as sampled, and how many tokens each has."""
        width = max(len(row.completions) for row in self.rows)
        self._valid_RC, self._sampled_RC = np.zeros((2, len(self.rows), width), dtype=bool)
        self._length_RC = np.ones((len(self.rows), width))
        rng = np.random.default_rng(seed)
        for r, row in enumerate(self.rows):
            n = len(row.completions)
            self._valid_RC[r, :n] = True
            self._sampled_RC[r, 1 + rng.permutation(n - 1)[:negatives]] = True
            self._length_RC[r, :n] = [len(c) for c in row.completions]

    # the Trainer's hooks

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        step, theirs = int(state.global_step), getattr(args, "output_dir", None)
        if self.metrics_log is not None and theirs and self.metrics_log.path.parent.resolve() == Path(theirs).resolve():
            raise ConfigError(f"monitor: folder {theirs} is the trainer's output_dir, which writes there: name another")
        self._scale_as(args)
        self._begin(step, step if step else -1, main=state.is_world_process_zero)
        if step and self.reference is None:
            raise ConfigError(
                f"monitor: training goes on at step {step}, so the reference is unknown: give ref_logps, or the folder "
                "that the interrupted training wrote"
            )
        self._look(model, state)

    def _scale_as(self, args: Any) -> None:
        """Reward and β: those given, or else the trainer's."""
        theirs: dict[str, Any] = {}
        if isinstance(args, SiriusConfig):
            objective = args.objective()
            theirs = {"reward": objective.shown_reward, "beta": objective.beta}
        elif any(kind.__name__ == "DPOConfig" for kind in type(args).__mro__):  # TRL need not be installed
            theirs = {"beta": float(args.beta)}
        elif self._beta is None and getattr(args, "beta", None) is not None:
            warnings.warn(
                f"monitor: {type(args).__name__} has a beta of its own ({args.beta}), whose meaning is not known here: "
                f"margins are measured with {Objective.beta}; give the monitor beta and reward",
                stacklevel=3,
            )
        for name, given in (("reward", self._reward), ("beta", self._beta)):
            if given is not None and theirs.get(name, given) != given:
                warnings.warn(
                    f"monitor: {name} is {given}, but the trainer's {theirs[name]}: margins, insensitive shares and "
                    f"onset are on another scale than its loss; leave {name} out to take the trainer's",
                    stacklevel=3,
                )
        self.reward: str = self._reward or theirs.get("reward", Objective.reward)
        self.beta: float = theirs.get("beta", Objective.beta) if self._beta is None else self._beta

    def _begin(self, step: int, kept: int, *, main: bool) -> None:
        """Start anew at step 0; at a later one go on from the evaluations up to step `kept`, here or in the folder that
        an interrupted training left; without any other, the first of them is the reference."""
        self._begun = True
        reference, users = self._given, self._users
        if self.metrics_log is not None and self.held_out_log is not None:
            for log in (self.metrics_log, self.held_out_log) if main else ():
                log.rewind(kept)
            processes.wait()  # for the one that rewinds
            self.snapshots = read_held_out(self.held_out_log.folder)
            self.points = []
            if self.snapshots:
                lines = read_metrics(self.metrics_log.path)
                self.points = [{k: v for k, v in line.items() if k != "kind"} for line in lines]
                stored = read_context(self.held_out_log.folder)
                reference = stored[0] if reference is None else reference
                users = stored[1] if users is None else users
            if main:
                self.held_out_log.note(reference, users)
        # A kill may have come between the point and its snapshot.
        whole = {s.step for s in self.snapshots} & {p["step"] for p in self.points} if step else set()
        self.points = [point for point in self.points if point["step"] in whole and point["step"] <= kept]
        self.snapshots = [snapshot for snapshot in self.snapshots if snapshot.step in whole and snapshot.step <= kept]
        self.users = users
        self.reference = self.snapshots[0].logp_R if reference is None and self.snapshots else reference

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % self.every == 0:
            self._look(model, state)

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self._look(model, state)

    def _look(self, model: Any, state: Any) -> None:
        if not self.points or self.points[-1]["step"] != state.global_step:
            self._evaluate(model, int(state.global_step), float(state.epoch or 0.0), main=state.is_world_process_zero)

    def evaluate(self, model: Any, step: int, epoch: float) -> dict[str, Any]:
        """Score the held-out slates now, append the point and write it to the folder; needs no Trainer.

        The first call of a monitor begins at step 0, or goes on from what the folder has of earlier steps. Steps
        increase: ConfigError for one that does not. DataError where log-probs are not finite.
        """
        if not self._begun:
            self._begin(step, step - 1, main=processes.is_main())
        if self.points and step <= self.points[-1]["step"]:
            raise ConfigError(
                f"monitor: step {step} comes after step {self.points[-1]['step']}, which is evaluated: steps increase; "
                "for another training make a new monitor"
            )
        return self._evaluate(model, step, epoch, main=processes.is_main())

    def _evaluate(self, model: Any, step: int, epoch: float, *, main: bool) -> dict[str, Any]:
        check_once(model, self.rows, self.encoder.pad_id, self.scoring)
        logp_R = score_rows(model, self.rows, self.encoder.pad_id, mode=self.scoring, max_tokens=self.batch_tokens)
        if not all(np.isfinite(row).all() for row in logp_R):
            raise DataError(f"monitor: the held-out log-probs are not finite at step {step}; the training has diverged")
        if self.reference is None:
            self.reference = logp_R
        point: dict[str, Any] = {"step": step, "epoch": epoch, "hr@1": float(hits(logp_R).mean())}
        point |= self._evidence(logp_R)
        point |= slate_measures(logp_R, self.reference, self.popularity_R)
        if self.generation_rows:
            point["valid_ratio"] = self._valid_ratio(model)
        self.points.append(point)
        self.snapshots.append(Snapshot(step, epoch, logp_R))
        if main and self.metrics_log is not None and self.held_out_log is not None:
            self.metrics_log.write({"kind": "eval", **point})
            self.held_out_log.write(step, epoch, logp_R)
        return point

    def _evidence(self, logp_R: list[np.ndarray]) -> dict[str, float]:
        logp_RC, ref_RC = np.zeros((2, *self._valid_RC.shape))
        logp_RC[self._valid_RC] = np.concatenate(logp_R)
        assert self.reference is not None
        ref_RC[self._valid_RC] = np.concatenate(self.reference)
        logp, ref, length = (torch.from_numpy(a) for a in (logp_RC, ref_RC, self._length_RC))
        reward_RC = reward_of(self.reward, logp, ref, length, self.beta)
        valid, sampled = torch.from_numpy(self._valid_RC), torch.from_numpy(self._sampled_RC)
        sums = evidence(reward_RC, logp, sampled, valid, self.epsilons, rounding_of(self.reward, self.beta))
        return {name: float(total / count) for name, (total, count) in sums.items() if float(count) > 0}

    def _valid_ratio(self, model: Any) -> float:
        from sirius_rec.rankers.generation import generate_answers

        records = self.records[: self.generation_rows]
        answers = generate_answers(
            model,
            self.encoder,
            [r["prompt"] for r in records],
            [[r["chosen"], *_listed(r["rejected"])] for r in records],
            [r["chosen"] for r in records],
        )
        return float(np.mean([answer.valid for answer in answers]))

    # what came out

    def onset(self) -> Onset:
        """Where hacking set in, over the evaluations so far; see `find_onset`."""
        hits_TR = np.array([hits(snapshot.logp_R) for snapshot in self.snapshots])
        margins = [point["reward_margin"] for point in self.points]
        return find_onset([s.step for s in self.snapshots], hits_TR, margins, self.users)

    def golden_fit(self) -> GoldenFit:
        """HR@1 gained over the reference against the distance from it."""
        return golden_of(self.points, self.reference)

    def write_csv(self, path: Path | str) -> None:
        """One line per evaluation."""
        names = list(dict.fromkeys(name for point in self.points for name in point))
        with atomic.replacing(Path(path)) as partial, partial.open("w", newline="") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows(self.points)

    def write_json(self, path: Path | str) -> None:
        """Points, onset (None with one evaluation) and golden fit."""
        onset = self.onset().as_dict() if len(self.points) > 1 else None
        content = {"points": self.points, "onset": onset, "golden_fit": self.golden_fit().as_dict()}
        atomic.write_text(Path(path), json.dumps(content, indent=1) + "\n")


def _listed(rejected: Any) -> list[str]:
    return [rejected] if isinstance(rejected, str) else list(rejected)


def _check_negatives(negatives: int, rejected_R: Sequence[int]) -> None:
    """ConfigError where no rejected text would be left unsampled."""
    fewest = min(rejected_R)
    if fewest < 2:
        raise ConfigError(
            f"record {list(rejected_R).index(fewest)} has {fewest} rejected texts: the monitor needs two or more, of "
            "which some count as sampled and the others as unsampled"
        )
    if not 1 <= negatives < fewest:
        raise ConfigError(f"negatives={negatives}: with {fewest} rejected texts it must lie between 1 and {fewest - 1}")


def _users_of(records: Sequence[Mapping[str, Any]]) -> list[Any] | None:
    """The `user` of each record; None where none has one, DataError where only some have."""
    users = [record.get("user") for record in records]
    unknown = [number for number, user in enumerate(users) if user is None or user != user]  # data frames say NaN
    if len(unknown) == len(users):
        return None
    if unknown:
        raise DataError(
            f"record {unknown[0]} has no 'user', others have: give every record one, or hand over users, one per record"
        )
    return users
