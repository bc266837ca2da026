"""What a training job tells people, and when it saves."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState

from sirius_rec import processes, stopping
from sirius_rec.errors import Stopped
from sirius_rec.progress import duration

if TYPE_CHECKING:
    from sirius_rec.recipes.run import WatchFn

# Asking the others costs a synchronisation; batch systems leave seconds, not one step.
_AGREE = 5


def _ends_epoch(args: Any, state: Any) -> bool:
    """A checkpoint between an epoch's last step and its evaluation would, on resuming, skip that evaluation."""
    return bool(state.global_step % max(round(state.max_steps / args.num_train_epochs), 1) == 0)


class SaveOnStop(TrainerCallback):
    """After SIGTERM: a checkpoint at the next step (at an epoch's last step: after its evaluation), then `Stopped`.

    Several processes agree on the step every _AGREE steps, because the signal may reach them in different ones.
    """

    def __init__(self) -> None:
        self._stops = False

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if processes.count() == 1:
            self._stops = stopping.requested()
        elif state.global_step % _AGREE == 0:
            self._stops = processes.any_of_them(stopping.requested(), args.device)
        if self._stops and not _ends_epoch(args, state):
            control.should_save = True
        return control

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._stops or (processes.count() == 1 and stopping.requested()):
            raise Stopped(f"stopped by SIGTERM after step {state.global_step} of {state.max_steps}, which is saved")


class Clock(TrainerCallback, ExportableState):
    """Seconds that the training took, over all the processes that did a part of it.

    Checkpoints carry them. What a killed process did after its last checkpoint was done again, and counts once.
    """

    def __init__(self) -> None:
        self._started, self._before = time.monotonic(), 0.0

    @property
    def seconds(self) -> float:
        return self._before + time.monotonic() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        kept = state.stateful_callbacks[type(self).__name__]["attributes"] if state.global_step else {}
        self._before = float(kept.get("seconds", 0.0))

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": {"seconds": round(self.seconds, 3)}}


class StopAfter(TrainerCallback):
    """Ends a training behind an epoch, whose checkpoint is written, though its schedule goes on."""

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if round(state.epoch) >= self._epochs:
            control.should_training_stop = True
        return control


class Watch(TrainerCallback):
    """Hands the epoch and the metrics of every evaluation to a function, which may raise to end the training."""

    def __init__(self, watch: WatchFn) -> None:
        self._watch = watch

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: Any = None, **kwargs: Any) -> None:
        named = {name.removeprefix("eval_"): value for name, value in (metrics or {}).items()}
        self._watch(round(state.epoch or 0), named)


class EpochLines(TrainerCallback):
    """One line per evaluation and, in between, one about every 15 seconds; a checkpoint at the end of each epoch.

    epochs: how many are trained, of a schedule that may be longer.
    """

    def __init__(self, name: str, log: Callable[[str], None], epochs: int) -> None:
        self.name, self.log, self.epochs, self.logged = name, log, epochs, time.monotonic()
        self._began, self._first = self.logged, 0

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._began, self._first = time.monotonic(), state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if _ends_epoch(args, state):
            control.should_save = False
        return control

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        control.should_save = True
        return control

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float] | None = None, **kwargs: Any) -> None:
        if not state.is_world_process_zero or not logs:
            return
        if "eval_hr@1" in logs:
            line = f"HR@1 {logs['eval_hr@1']:.4f}"
            if "eval_reward_margin" in logs:
                line += f"  margin {logs['eval_reward_margin']:+.2f}"
            if "eval_true_reward" in logs:
                line += f"  true reward {logs['eval_true_reward']:.3f}"
        elif "loss" in logs and time.monotonic() - self.logged > 15:
            done = state.global_step - self._first
            left = (time.monotonic() - self._began) / max(done, 1) * (self._last_step(args, state) - state.global_step)
            line = f"loss {logs['loss']:.4f}  {logs.get('tokens_per_second', 0):.0f} tokens/s"
            if done > 0:
                line += f"  {duration(left)} left"
        else:
            return
        self.logged = time.monotonic()
        self.log(f"{self.name}  epoch {state.epoch or 0:.2f}/{self.epochs}  {line}")

    def _last_step(self, args: Any, state: Any) -> int:
        return round(state.max_steps * self.epochs / args.num_train_epochs)
