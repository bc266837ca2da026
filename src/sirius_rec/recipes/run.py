"""An open run: its folder, configuration and data, the tokenizer and encoder made once. What every job works on."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import polars as pl

from sirius_rec.config import Config
from sirius_rec.data.options import INTERACTED_LEAKY
from sirius_rec.errors import ConfigError, RunError
from sirius_rec.evaluation.tables import user_groups
from sirius_rec.recipes.job import Ticker
from sirius_rec.recipes.run_folder import RunFolder
from sirius_rec.schema import CANDIDATES, HISTORY, RETRIEVED, ROW_ID, SPLITS, USER_ID, SlateName
from sirius_rec.training.batching import spread

if TYPE_CHECKING:
    from sirius_rec.data.store import Dataset
    from sirius_rec.prompts.encoding import Encoder
    from sirius_rec.prompts.templates import Template

ItemLists = list[np.ndarray]
# Gets the epoch (0: before the first step) and the metrics of an evaluation, without their prefix.
WatchFn = Callable[[int, Mapping[str, float]], None]


def _spread(users: Any) -> np.ndarray:
    """`spread` of rows over their users, the same for every run; a row without a user is one of its own."""
    return spread(np.unique(user_groups(users), return_inverse=True)[1], np.random.default_rng(0))


class Run:
    """A run folder with its configuration. Data, tokenizer and encoder are loaded when they are first asked for.

    watch: is told of each evaluation of its trainings; what it raises ends them.
    """

    watch: WatchFn | None = None

    def __init__(self, folder: RunFolder, config: Config) -> None:
        self.folder, self.config = folder, config

    @classmethod
    def open(cls, path: Path | str) -> Run:
        """The run in a folder, with the configuration that it was made with; RunError if it is none."""
        folder = RunFolder(Path(path))
        return cls(folder, folder.config())

    @cached_property
    def dataset(self) -> Dataset:
        """The prepared data."""
        from sirius_rec.data.store import open_dataset

        return open_dataset(self.folder.data)

    @cached_property
    def tokenizer(self) -> Any:
        """The backbone's tokenizer; the tiny backbone's is trained on the catalogue, once per run."""
        from sirius_rec.recipes.models import load_run_tokenizer

        return load_run_tokenizer(self.folder, self.config, self.dataset)

    @cached_property
    def encoder(self) -> Encoder:
        """Texts to token ids, as every model of this run reads them."""
        return self.encoder_of(self.tokenizer)

    def encoder_of(self, tokenizer: Any) -> Encoder:
        """The same with another tokenizer."""
        from sirius_rec.prompts.encoding import Encoder

        return Encoder(tokenizer, chat=self.config.prompts.chat, progress_of=partial(Ticker, "tokenising prompts"))

    @property
    def template(self) -> Template:
        """The configured template."""
        return self.config.prompts.form()

    @cached_property
    def shown(self) -> list[str]:
        """What stands for each item in prompts: its title, and the configured fields behind it.

        ConfigError for a field that the catalogue does not have.
        """
        from sirius_rec.prompts.fields import with_fields

        prompts = self.config.prompts
        return with_fields(self.dataset.items, prompts.fields, self.tokenizer, prompts.field_tokens)

    # Slates

    @property
    def train_slates(self) -> SlateName:
        """The slates that training uses."""
        slate = next(s for s in self.config.data.slates if "train" in s.splits)
        assert slate.size is not None, "only protocol full has no size, and it covers no train split"
        return SlateName("train", slate.protocol, slate.size, slate.seed, slate.exclude == INTERACTED_LEAKY)

    @property
    def validation_slates(self) -> SlateName | None:
        """The validation slates of the training protocol; None where the data has none."""
        name = replace(self.train_slates, split="val")
        return name if str(name) in self.dataset.slate_names and self.dataset.examples("val").height else None

    @property
    def validation_rows(self) -> np.ndarray:
        """The validation rows ranked after each epoch; the same for every seed and method.

        With `training.share: user` neighbouring rows of every user (`spread`), whose histories are then computed once.
        """
        users = self.dataset.examples("val")[USER_ID]
        wanted = min(len(users), self.config.evaluation.validation_rows or len(users))
        alone = self.config.training.share == "none"
        order = np.random.default_rng(0).permutation(len(users)) if alone else _spread(users)
        return np.sort(order[:wanted])

    @property
    def selecting(self) -> np.ndarray | None:
        """Which of `validation_rows` choose SFT's best epoch, [rows] bool: those of half the users, drawn once.

        Alignment starts from that epoch, whose HR@1 is flattered on the rows that chose it; its onset of hacking is
        looked for on the others. (Pretraining of the tiny backbone chooses its epoch by all rows.) None where all rows
        are one user's.
        """
        users = self.dataset.examples("val")[USER_ID].gather(self.validation_rows.tolist())
        groups, codes = np.unique(user_groups(users), return_inverse=True)
        if len(groups) < 2:
            return None
        chosen = np.random.default_rng([0, 1]).permutation(len(groups)) < len(groups) // 2
        return np.asarray(chosen[codes.reshape(-1)])

    def check_measured(self) -> None:
        """ConfigError for a final fit (`refitting`), whose data is all for training."""
        if (origin := self.folder.origin()) is not None:
            raise ConfigError(
                f"{self.folder.path}: is a final fit, of which nothing is left to measure: see {origin['run']}"
            )

    @property
    def has_tests(self) -> bool:
        """Whether the data holds anything to test on: a final fit has taken all of it for training."""
        return any(SlateName.parse(name).split == "test" for name in self.dataset.slate_names)

    @property
    def test_slates(self) -> list[str]:
        """Names of the slates that results are measured on; ConfigError naming those that there are."""
        prepared = [name for name in self.dataset.slate_names if SlateName.parse(name).split == "test"]
        chosen = self.config.evaluation.slates
        for key, names in (("slates", chosen or ()), ("test_rows", self.config.evaluation.test_rows or ())):
            for name in names:
                if name not in prepared:
                    have = ", ".join(prepared) or "none"
                    raise ConfigError(f"evaluation.{key}: no test slates '{name}'; there are {have}")
        if chosen is None and not prepared:
            self.check_measured()
            raise ConfigError(self._why_nothing_is_tested())
        return [*(prepared if chosen is None else chosen), *self.retrieved_slates]

    @property
    def retrieved_slates(self) -> list[str]:
        """Names of the slates that the run makes itself."""
        return [
            str(SlateName("test", RETRIEVED + entry.retriever, entry.size, self.config.seeds[0]))
            for entry in self.config.evaluation.retrieved
        ]

    @property
    def full_slates(self) -> str:
        """The test slates of the whole catalogue, which say what users had met."""
        return next(name for name in self.dataset.slate_names if SlateName.parse(name).protocol == "full")

    def slates(self, name: str) -> pl.DataFrame:
        """row_id, candidates of the data's frozen slates, or of those that the run has made; RunError if it has not."""
        if name not in self.retrieved_slates:
            return self.dataset.slates(name)
        if not (file := self.folder.retrieved(name)).is_file():
            raise RunError(f"{file}: not made yet: run `sirius evaluate`")
        return pl.read_parquet(file)

    def _why_nothing_is_tested(self) -> str:
        if not any("test" in slate.splits for slate in self.config.data.slates):
            return "data.slates: no slates cover the test split, so nothing can be evaluated"
        split = self.config.data.split
        users = [self.dataset.examples(part)[USER_ID].n_unique() for part in SPLITS]
        rows = [self.dataset.examples(part).height for part in SPLITS]
        return (
            f"data.split: kind {split.kind} leaves the test split without rows (users of train, val, test: "
            f"{', '.join(map(str, users))}; rows: {', '.join(map(str, rows))}): use leave_last_out or time, or other "
            "ratios"
        )

    @property
    def sized_test_slates(self) -> list[str]:
        """The test slates whose candidates all get a score: all but the whole catalogue."""
        return [name for name in self.test_slates if SlateName.parse(name).protocol != "full"]

    def tested_ids(self, slates: str) -> list[int]:
        """The row_id of each of `tested_rows`."""
        examples = self.dataset.examples(SlateName.parse(slates).split)
        ids: list[int] = examples[ROW_ID][self.tested_rows(slates)].to_list()
        return ids

    def tested_rows(self, slates: str) -> np.ndarray:
        """Numbers of the rows of frozen slates that are ranked, ascending: all, or those of `evaluation.test_rows`.

        About the same share of every user's rows (`spread`), drawn once; the rows of a smaller number are among those
        of a larger.
        """
        users = self.dataset.examples(SlateName.parse(slates).split)[USER_ID]
        wanted = (self.config.evaluation.test_rows or {}).get(slates)
        protocol = SlateName.parse(slates).protocol
        if wanted is None and (protocol == "full" or protocol.startswith(RETRIEVED)):
            wanted = self.config.evaluation.full_rows
        if wanted is None:
            return np.arange(len(users))
        return np.sort(_spread(users)[:wanted])

    def met_rows(self, slates: str) -> np.ndarray:
        """Numbers of the rows of frozen slates that this run looks at: of train slates all."""
        split = SlateName.parse(slates).split
        if split == "test":
            return self.tested_rows(slates)
        return self.validation_rows if split == "val" else np.arange(self.dataset.n_rows(split))

    def slate_arrays(self, slates: str) -> tuple[ItemLists, ItemLists]:
        """Histories and candidates of the ranked rows of frozen slates, as dense item numbers."""
        rows = self.tested_rows(slates)
        histories = self.dataset.examples(SlateName.parse(slates).split)[HISTORY].gather(rows)
        candidates = self.slates(slates)[CANDIDATES].gather(rows)
        return [row.to_numpy() for row in histories], [row.to_numpy() for row in candidates]


def quiet() -> None:
    """Silence what transformers prints per step; our own lines say what a job does."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", message=".*lr_scheduler.step.*")
    # PEFT still asks by the names that transformers has just renamed.
    warnings.filterwarnings("ignore", category=FutureWarning, message=".*gradient_checkpointing.*")
