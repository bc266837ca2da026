"""What a recommender of a run is: one object that says what it is called and needs, trains itself, and ranks.

Recipes loop over these objects and know no name of one. A family of methods is a file beside this one; a new method is
a subclass of `Method` (or of its family's class) and an entry in `methods.METHODS`.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from sirius_rec.config import Config, MethodSection
from sirius_rec.errors import ConfigError
from sirius_rec.recipes.run_folder import DONE
from sirius_rec.schema import SlateName

if TYPE_CHECKING:
    from sirius_rec.recipes.run import Run

Role = Literal["trivial", "baseline", "sft", "arm"]


@dataclass(frozen=True)
class Prerequisite:
    """Something other than a method that must be made first, once per seed.

    name: of its jobs, with the seed behind. stage: the stage of a run that makes it. run: takes the run folder's path
    and the seed. after: names of the prerequisites and methods that it needs itself.
    """

    name: str
    stage: str
    run: Callable[[str, int], None]
    after: tuple[str, ...] = ()


class Method(ABC):
    """One recommender of a run.

    role: `trivial` (always scored, nothing to choose), `baseline` (from `methods:`), `sft`, or `arm`. stage: the stage
    of a run that trains it. uses_backbone: prompts the run's language model, or one that it is made of.
    remote: asks somebody else's model. ranks_catalogue: gives every item of the catalogue a score. answers: writes
    titles, so that ValidRatio can be measured. alone: of several processes one fits it, and the others wait.
    """

    name: ClassVar[str]
    title: ClassVar[str]
    role: ClassVar[Role] = "baseline"
    stage: ClassVar[str] = "evaluate"
    uses_backbone: bool = False
    remote: ClassVar[bool] = False
    ranks_catalogue: bool = True
    answers: ClassVar[bool] = False
    alone: bool = True
    # Whether it is what a run studies, SFT or an arm, or is made of it: then it is nothing to measure that against.
    studied: bool = False
    # Whether it scores titles by log π(title | prompt), so that titles outside the catalogue can be ranked too.
    reads_titles: ClassVar[bool] = False
    # Whether the softmax of its scores over a slate is what it holds the candidates' probabilities to be.
    probabilities: ClassVar[bool] = False
    # Whether its prompts hold what `prompts.fields` puts behind titles.
    reads_fields: ClassVar[bool] = True
    # Options that say how answers are fetched and what they cost: they may change while a run is under way.
    free_options: ClassVar[tuple[str, ...]] = ()
    # Whether `methods:` may give it seeds of its own.
    own_seeds: ClassVar[bool] = False

    def __init__(self, config: Config, entry: MethodSection) -> None:
        """Raises ConfigError for a preset or an option that the method does not have, or a value out of range."""
        self.config, self.entry, self.key = config, entry, entry.key

    def join(self, others: Mapping[str, Method]) -> None:  # noqa: B027 (most methods stand alone)
        """Told once of the methods that are listed before it, by key. ConfigError where it needs one that is not."""

    # What it is

    @property
    def label(self) -> str:
        """How tables call it: the configured name, else the method's and what differs from the tuned preset."""
        return self.entry.name or ", ".join([self.title, *self._differences()])

    def _differences(self) -> list[str]:
        options = self.entry.options.items()
        own = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in options]
        return [f"{self.entry.preset}'s settings", *own] if self.entry.preset != "tuned" else own

    @property
    def random(self) -> bool:
        """Whether another seed gives other scores."""
        return False

    @property
    def seeds(self) -> tuple[int, ...]:
        """Its own seeds, else the run's; a method that comes out the same with every seed runs once."""
        return (self.entry.seeds or self.config.seeds) if self.random else (0,)

    def seed_for(self, seed: int) -> int:
        """Its seed beside another method's of this one: the same, or its first where it has none such."""
        return seed if seed in self.seeds else self.seeds[0]

    @property
    def base(self) -> str | None:
        """Key of the method that it is a variant of, and is compared with: + SIRIUS of what has no anchor."""
        return None

    @property
    def is_ours(self) -> bool:
        """Whether this package has its code, rather than a script or a plug-in, which may change under its scores."""
        return type(self).__module__.startswith(f"{__package__.partition('.')[0]}.")

    def facts(self, run: Run) -> dict[str, Any]:
        """What results.json says of it; train_rows: that it learns from, None of what learns from none;
        language_model: whether it is one; probabilities: see there."""
        return {
            "label": self.label, "role": self.role, "random": self.random, "base": self.base,
            "train_rows": self.train_rows(run), "studied": self.studied,
            "language_model": self.uses_backbone or self.remote, "probabilities": self.probabilities,
        }  # fmt: skip

    def train_rows(self, run: Run) -> int | None:
        """How many training rows it learns from; None where it learns from none."""
        return run.dataset.n_all_train

    def request_length(self, run: Run) -> Callable[[list[int], list[int]], int] | None:
        """Tokens of a prompt for a history and a slate with its longest candidate; None of what reads no prompts."""
        return None

    # What it needs

    def prerequisites(self) -> tuple[Prerequisite, ...]:
        """What must be made before it, with the same seed, other than methods."""
        return ()

    def builds_on(self) -> tuple[str, ...]:
        """Keys of the methods, and names of the prerequisites, whose results it starts from."""
        return tuple(prerequisite.name for prerequisite in self.prerequisites())

    def reads_tables_of(self) -> tuple[str, ...]:
        """Keys of the methods whose score tables its own are made of."""
        return ()

    def check(self, run: Run) -> None:  # noqa: B027 (most methods have nothing to check)
        """Raise, before anything is trained, what can be known to fail; not asked of what is done."""

    # Where it lies

    def folder(self, run: Run, seed: int) -> Path:
        return run.folder.method(self.key, seed)

    def is_done(self, run: Run, seed: int) -> bool:
        return (self.folder(run, seed) / DONE).is_file()

    def made_in(self, run: Run, seed: int) -> list[Path]:
        """Folders of all the trainings that it took, its own last."""
        return [self.folder(run, seed)]

    def trained_as(self, run: Run, seed: int) -> str:
        """What tells that which ranks from another training in the same folder: a hash of its `DONE`, which holds the
        seconds that it took. What it was trained from may be gone, or made anew, and it ranks as before."""
        done = self.folder(run, seed) / DONE
        return hash_of(done.read_text() if done.is_file() else "")

    # What it does

    def ranks(self, run: Run, slates: str) -> bool:
        """Whether it ranks these slates; `no_catalogue` says why not those of the whole catalogue."""
        return self.ranks_catalogue or SlateName.parse(slates).protocol != "full"

    no_catalogue: ClassVar[str] = "does not rank the whole catalogue"

    def scores(self, run: Run, ranker: Any, slates: str, seed: int, checkpoint: str) -> Any:
        """Of every row of these slates one score per candidate, by what `ranker` gave for this seed and checkpoint."""
        return ranker.score(*run.slate_arrays(slates))

    @abstractmethod
    def fit(self, run: Run, seed: int) -> None:
        """Train what is not trained yet, and leave `DONE` in its folder."""

    @abstractmethod
    def ranker(self, run: Run, seed: int, checkpoint: str) -> Any:
        """A `rankers.protocol.Ranker`; where `answers`, with `answer(histories, candidates, targets)` too."""

    def steps(self, run: Run, seed: int) -> Mapping[str, int]:
        """The training step of each checkpoint, `best` and `last`; equal steps are scored once."""
        return {"best": 0, "last": 0}

    def validation_hit(self, run: Run, seed: int) -> float | None:
        """HR@1 of the best checkpoint on validation slates; None where it was not measured."""
        return None

    def settled(self, run: Run, seed: int) -> Config:
        """The run's configuration with this trained method alone, and what it chose on validation slates (when to stop,
        an L2) written into it, so that it can be trained without them. ConfigError for what does not say that."""
        raise ConfigError(f"{self.key}: does not say how it is fitted again (Method.settled)")

    @property
    def settles(self) -> bool:
        """Whether it has a `settled` of its own, and is none of the baselines that every table has."""
        return self.role != "trivial" and type(self).settled is not Method.settled


def alone(config: Config, entry: MethodSection | None = None, **changes: Any) -> Config:
    """The configuration with one method and no arms; of SFT, which is none of `methods`, with neither.

    changes: of further sections.
    """
    entries = () if entry is None else (entry.changed(seeds=None),)
    sft = config.sft.changed(always=False)
    return config.changed(**{"arms": (), "methods": entries, "sft": sft, **changes})


def hash_of(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def no_preset(method: str, preset: str) -> None:
    """ConfigError for a preset other than the tuned one."""
    if preset != "tuned":
        raise ConfigError(f"preset '{preset}': {method} has no settings of the paper, leave it out")
