"""MoRec (Yuan et al. 2023): SASRec whose item embeddings are its titles, read by a text encoder and projected.

Items have no embedding of their own, so an item that training never saw is ranked by its title like any other.

Unlike the publication: a title is the mean of its tokens' last states, not the first token's ([CLS]), then a LayerNorm
and a linear projection; its SASRec is ours (`networks.SASRec`, with its differences); negatives are shared by a batch.
The publication's encoders are pretrained; the default one here is a small BERT from scratch, trained with the rest.
Encoders are in `encoders`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sirius_rec.errors import DataError, RunError
from sirius_rec.rankers.protocol import Items
from sirius_rec.rankers.sequential.encoders import TITLES_AT_ONCE, kept_vectors, load_encoder, mean_over_tokens
from sirius_rec.rankers.sequential.networks import Network, SASRec
from sirius_rec.rankers.sequential.options import MoRecOptions
from sirius_rec.rankers.sequential.ranker import SequentialRanker, Validation


class TextItems(nn.Module):
    """Stands where a network has its embedding table; ids outside the catalogue (padding) are zero.

    Frozen: features_IF, projected. Tuned: the encoder reads token_ids_IL of the items asked for.
    """

    features_IF: Tensor | None
    token_ids_IL: Tensor | None

    def __init__(
        self, dimension: int, *, features_IF: Tensor | None, encoder: Any, token_ids_IL: Tensor | None
    ) -> None:
        super().__init__()
        self.encoder = encoder
        width = features_IF.shape[1] if features_IF is not None else encoder.config.hidden_size
        self.norm, self.project = nn.LayerNorm(width), nn.Linear(width, dimension)
        nn.init.normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)
        self.register_buffer("features_IF", features_IF)
        self.register_buffer("token_ids_IL", token_ids_IL)
        self._table_ID: Tensor | None = None
        self._step: tuple[Tensor, Tensor] | None = None

    @property
    def n_items(self) -> int:
        stored = self.features_IF if self.features_IF is not None else self.token_ids_IL
        assert stored is not None
        return len(stored)

    def _embedded(self, items_N: Tensor) -> Tensor:
        if self.features_IF is not None:
            features_NF = self.features_IF[items_N]
        else:
            assert self.token_ids_IL is not None
            features_NF = mean_over_tokens(self.encoder, self.token_ids_IL[items_N])
        out: Tensor = self.project(self.norm(features_NF))
        return out

    def train(self, mode: bool = True) -> TextItems:
        self._table_ID = self._step = None  # the weights are about to change, or just did
        super().train(mode)
        return self

    @property
    def weight(self) -> Tensor:
        """[n_items + 1, dimension]; without training it is computed once."""
        if self._table_ID is not None and not self.training:
            return self._table_ID
        every = torch.arange(self.n_items, device=self.project.weight.device)
        parts = [self._embedded(part) for part in torch.split(every, TITLES_AT_ONCE)]
        table_ID = torch.cat([*parts, parts[0].new_zeros(1, parts[0].shape[1])])
        if not self.training and not torch.is_grad_enabled():
            self._table_ID = table_ID
        return table_ID

    def forward(self, items: Tensor) -> Tensor:
        """[..., dimension] of item ids of any shape."""
        if not self.training:
            return self.weight[items]
        asked_U, place = torch.unique(items, return_inverse=True)
        if self._step is not None:
            ready_R, ready_RD = self._step
            at_U = torch.searchsorted(ready_R, asked_U).clamp(max=len(ready_R) - 1)
            if bool((ready_R[at_U] == asked_U).all()):
                return ready_RD[at_U][place]
        return self._with_padding(asked_U)[place]

    def prepare(self, items: Tensor) -> None:
        """Encode all that the coming training step asks for at once: its inputs and its targets are mostly the same."""
        asked_U = torch.unique(items)
        self._step = asked_U, self._with_padding(asked_U)

    def _with_padding(self, asked_U: Tensor) -> Tensor:
        known_U = asked_U < self.n_items
        out_UD = self.project.weight.new_zeros(len(asked_U), self.project.out_features)
        if bool(known_U.any()):
            out_UD = out_UD.masked_scatter(known_U[:, None], self._embedded(asked_U[known_U]))
        return out_UD


class MoRecRanker(SequentialRanker):
    """`SequentialRanker` over titles. titles: by dense item number. See `MoRecOptions`.

    vectors: a file that keeps what a frozen encoder says of the titles, for other seeds.
    """

    def __init__(
        self, options: MoRecOptions, titles: Sequence[str], seed: int = 0, *, vectors: Path | None = None
    ) -> None:
        super().__init__(options, seed)
        self.titles, self._vectors = list(titles), vectors
        self._saved: dict[str, Any] | None = None

    def fit(
        self,
        sequences: Sequence[Items],
        n_items: int,
        validation: Validation | None = None,
        *,
        progress: Callable[[str], None] | None = None,
        keep: Path | None = None,
    ) -> MoRecRanker:
        """As `SequentialRanker.fit`; DataError if there is not one title per item. Nothing counts as unseen."""
        if len(self.titles) != n_items:
            raise DataError(f"morec: {len(self.titles)} titles for {n_items} items; give one title per item")
        super().fit(sequences, n_items, validation, progress=progress, keep=keep)
        return self

    def _known_items(self, flat: Items, n_items: int) -> Any:
        known_I = super()._known_items(flat, n_items)
        known_I[:] = True
        return known_I

    def _build(self, n_items: int) -> Network:
        options = self.options
        assert isinstance(options, MoRecOptions)
        if self._saved is not None:
            encoder, token_ids_IL, features_IF = _from_saved(self._saved)
        elif options.tunes:
            (encoder, token_ids_IL), features_IF = load_encoder(options.encoder, self.titles, options.dimension), None
        else:
            encoder = token_ids_IL = None
            with torch.random.fork_rng():  # loading may draw numbers, and reading what is kept does not
                features_IF = kept_vectors(self._vectors, options.encoder, self.titles)
        sizes = {name: getattr(options, name) for name in ("dimension", "layers", "heads", "dropout", "length")}
        network = SASRec(n_items, **sizes)
        network.items = TextItems(
            options.dimension, features_IF=features_IF, encoder=encoder, token_ids_IL=token_ids_IL
        )
        # A bias per item would be an embedding by the back door: popularity must be read off the text.
        network.bias.requires_grad_(False)
        return network

    def _before_step(self, items_BT: Tensor, target_BT: Tensor) -> None:
        assert self.network is not None
        self.network.items.prepare(torch.cat([items_BT.flatten(), target_BT[target_BT >= 0]]))

    def _parameter_groups(self, network: Network) -> list[dict[str, Any]]:
        options = self.options
        assert isinstance(options, MoRecOptions)
        encoder = network.items.encoder
        inside = [] if encoder is None else list(encoder.parameters())
        encoder_ids = set(map(id, inside))
        rest = [p for p in network.parameters() if id(p) not in encoder_ids and p.requires_grad]
        rate = options.encoder_learning_rate or options.learning_rate
        return [{"params": rest}, *([{"params": inside, "lr": rate}] if inside else [])]

    def _content(self) -> dict[str, Any]:
        assert self.network is not None
        encoder = self.network.items.encoder
        return {
            **super()._content(),
            "morec": {
                "encoder": None if encoder is None else encoder.config.to_dict(),
                "features": None if encoder is not None else list(self.network.items.features_IF.shape),
                "tokens": None if encoder is None else list(self.network.items.token_ids_IL.shape),
            },
        }

    @classmethod
    def load(cls, folder: Path) -> MoRecRanker:
        """What `save` wrote; needs neither titles nor the encoder's source. RunError if it is not there or damaged."""
        try:
            content = json.loads((folder / "ranker.json").read_text())
            ranker = cls(MoRecOptions(**content["options"]), (), content["seed"])
            ranker._saved = content["morec"]
            ranker._read(folder, content)
        except Exception as error:  # safetensors, torch, transformers and json each raise their own
            raise RunError(
                f"{folder}: not a saved ranker ({type(error).__name__}): delete it and train again"
            ) from error
        return ranker


def _from_saved(saved: dict[str, Any]) -> tuple[Any, Tensor | None, Tensor | None]:
    if saved["encoder"] is None:
        return None, None, torch.empty(saved["features"])
    from transformers import AutoConfig, AutoModel

    config: Any = AutoConfig.for_model(**saved["encoder"])
    build: Any = AutoModel.from_config
    return build(config), torch.empty(saved["tokens"], dtype=torch.long), None


def load_ranker(folder: Path) -> SequentialRanker:
    """A saved sequential ranker of either kind; RunError if it is not there or damaged."""
    try:
        texts = "morec" in json.loads((folder / "ranker.json").read_text())
    except (OSError, ValueError, TypeError):
        texts = False  # SequentialRanker.load says what is wrong
    return MoRecRanker.load(folder) if texts else SequentialRanker.load(folder)
