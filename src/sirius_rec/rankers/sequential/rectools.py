"""Networks of RecTools (extra `rectools`): eSASRec, HSTU and its SASRec, trained and scored as ours are.

Its encoders as they are, with its initial values. The item table, what a step trains on, the loss, the optimiser, early
stopping and the slates are this package's, so what differs from `sasrec` in a table is the encoder.
"""

from __future__ import annotations

from abc import abstractmethod
from importlib import import_module
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sirius_rec.errors import ConfigError
from sirius_rec.rankers.sequential.networks import Network


class RecToolsNetwork(Network):
    """A transformer of RecTools over our item table; no bias per item. Padding is never attended to.

    It reads exactly `length` items, as the ranker hands them over: positions count from the newest. masks_padding:
    whether attention has to be told; HSTU's layers leave padding out themselves. scales_items: by √dimension.
    """

    masks_padding: ClassVar[bool] = True
    scales_items: ClassVar[bool] = False

    def __init__(self, n_items: int, *, dimension: int, layers: int, dropout: float, length: int, heads: int) -> None:
        super().__init__(n_items, dimension, dropout)
        self.bias.requires_grad_(False)
        encoder = _part("torch_backbone", "TransformerTorchBackbone")(
            n_heads=heads,
            dropout_rate=dropout,
            item_model=None,  # item embeddings are handed over with the items
            pos_encoding_layer=_part("net_blocks", "LearnableInversePositionalEncoding")(
                True, length, dimension, use_scale_factor=self.scales_items
            ),
            transformer_layers=self._layers(dimension, length, n_blocks=layers, n_heads=heads, dropout_rate=dropout),
            similarity_module=_part("similarity", "DistanceSimilarityModule")(),
            use_causal_attn=True,
            use_key_padding_mask=self.masks_padding,
        )
        for weight in encoder.parameters():  # as its training does; the input projection of HSTU is empty before
            if weight.dim() > 1:
                nn.init.xavier_normal_(weight)
        self.encoder = encoder

    @abstractmethod
    def _layers(self, dimension: int, length: int, **shape: Any) -> Any:
        """RecTools' layers of this network. shape: n_blocks, n_heads, dropout_rate."""

    def forward(self, items_BT: Tensor) -> Tensor:
        # RecTools numbers padding 0 and items from 1.
        table_ID = torch.cat([self.items.weight[self.n_items :], self.items.weight[: self.n_items]])
        states_BTD: Tensor = self.encoder.encode_sessions({"x": (items_BT + 1) % (self.n_items + 1)}, table_ID)
        return states_BTD


class SASRecOfRecTools(RecToolsNetwork):
    """RecTools' SASRec."""

    def _layers(self, dimension: int, length: int, **shape: Any) -> Any:
        return _part("sasrec", "SASRecTransformerLayers")(n_factors=dimension, **shape)


class ESASRec(RecToolsNetwork):
    """eSASRec (Tikhonovich et al. 2025): SASRec's objective with LiGR layers, which gate what they add.

    Its preset trains by sampled softmax, as the publication does, with negatives drawn uniformly.
    """

    def _layers(self, dimension: int, length: int, **shape: Any) -> Any:
        return _part("ligr", "LiGRLayers")(n_factors=dimension, **shape)


class HSTU(RecToolsNetwork):
    """HSTU (Zhai et al. 2024), with relative positions and without relative times: rankers are given no times.

    A score is the cosine of state and item over the publication's temperature.
    """

    masks_padding, scales_items = False, True
    temperature: ClassVar[float] = 0.05

    def _layers(self, dimension: int, length: int, **shape: Any) -> Any:
        head = dimension // shape["n_heads"]
        return _part("hstu", "STULayers")(
            n_factors=dimension, session_max_len=length, attention_dim=head, linear_hidden_dim=head,
            relative_time_attention=False, relative_pos_attention=True, **shape,
        )  # fmt: skip

    def scores(self, state_ND: Tensor, items_NC: Tensor | None = None) -> Tensor:
        state_ND = F.normalize(state_ND, dim=-1) / self.temperature
        if items_NC is None:
            return F.linear(state_ND, F.normalize(self.items.weight[: self.n_items], dim=-1))
        return torch.einsum("ncd,nd->nc", F.normalize(self.items(items_NC), dim=-1), state_ND)


def _part(module: str, name: str) -> Any:
    """A building block of RecTools. ConfigError where it is not installed."""
    try:
        return getattr(import_module(f"rectools.models.nn.transformers.{module}"), name)
    except ImportError as error:
        raise ConfigError(f"this network needs RecTools ({error}): pip install 'sirius-rec[rectools]'") from error


RECTOOLS_NETWORKS: dict[str, type[Network]] = {"esasrec": ESASRec, "hstu": HSTU, "sasrec_rectools": SASRecOfRecTools}
