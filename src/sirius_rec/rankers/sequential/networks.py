"""The three networks. Left-padded item numbers in, one state per position (or for the last one) out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Network(nn.Module, ABC):
    """items_BT: int64, left-padded with `n_items`, the last column the newest item; states come out [B, T, D].

    Scores are states @ item embeddings (+ bias): input and output embeddings are one table, as in SASRec.
    `every_position` says whether all T states are trained, or the last one only.
    """

    every_position = True

    def __init__(self, n_items: int, dimension: int, dropout: float) -> None:
        super().__init__()
        self.n_items = n_items
        # Any: MoRec puts its text encoder here.
        self.items: Any = nn.Embedding(n_items + 1, dimension, padding_idx=n_items)
        self.bias = nn.Parameter(torch.zeros(n_items))
        self.dropout = nn.Dropout(dropout)
        nn.init.normal_(self.items.weight, std=0.02)
        with torch.no_grad():
            self.items.weight[n_items].zero_()

    @abstractmethod
    def forward(self, items_BT: Tensor) -> Tensor: ...

    def scores(self, state_ND: Tensor, items_NC: Tensor | None = None) -> Tensor:
        """[N, n_items], or [N, C] of the given items."""
        if items_NC is None:
            return F.linear(state_ND, self.items.weight[: self.n_items], self.bias)
        return torch.einsum("ncd,nd->nc", self.items(items_NC), state_ND) + self.bias[items_NC]


class GRU4Rec(Network):
    """Hidasi et al. 2016: a GRU over item embeddings, then a linear layer.

    Unlike the publication: no negatives from the other sessions of a mini-batch (they are drawn uniformly, or all items
    are scored; its ranking losses BPR-max and TOP1 are not here), whole chunks in place of session-parallel batches, an
    embedding as input and as output in one table, and a bias per item.
    """

    def __init__(self, n_items: int, *, dimension: int, layers: int, dropout: float, length: int, heads: int) -> None:
        super().__init__(n_items, dimension, dropout)
        self.gru = nn.GRU(dimension, dimension, num_layers=layers, batch_first=True)
        self.out = nn.Linear(dimension, dimension)

    def forward(self, items_BT: Tensor) -> Tensor:
        # Read with the padding behind the items: before them it would move the state, and further in short histories.
        width = items_BT.shape[1]
        shift_B1 = (items_BT == self.n_items).sum(1, keepdim=True).clamp(max=width - 1)
        place_T = torch.arange(width, device=items_BT.device)
        moved_BT = items_BT.gather(1, (place_T + shift_B1) % width)
        states_BTD, _ = self.gru(self.dropout(self.items(moved_BT)))
        back_BT1 = ((place_T - shift_B1) % width)[:, :, None]
        states_BTD = states_BTD.gather(1, back_BT1.expand_as(states_BTD))
        out: Tensor = self.out(self.dropout(states_BTD))
        return out


class SASRec(Network):
    """Kang & McAuley 2018: causal self-attention over item and position embeddings.

    Unlike the publication: a bias per item; GELU in place of ReLU, in a feed-forward layer twice as wide as the
    embedding, not as wide; item embeddings are not multiplied by √d; no dropout on attention weights; keys and values
    are normalised too, not queries alone; positions count from the first real item of a row, not from the newest. The
    loss is an option (`bce` with one negative is the publication's).
    """

    def __init__(self, n_items: int, *, dimension: int, layers: int, dropout: float, length: int, heads: int) -> None:
        super().__init__(n_items, dimension, dropout)
        self.positions = nn.Embedding(length, dimension)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList(_Block(dimension, heads, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(dimension)

    def forward(self, items_BT: Tensor) -> Tensor:
        width = items_BT.shape[1]
        # Counted within the row from its first real item, so that a state does not depend on the padding before it.
        real_BT = items_BT != self.n_items
        place_BT = (real_BT.cumsum(1) - 1).clamp(min=0)
        x_BTD = self.dropout(self.items(items_BT) + self.positions(place_BT) * real_BT[:, :, None])
        causal_TT = torch.ones(width, width, dtype=torch.bool, device=items_BT.device).tril()
        itself_TT = torch.eye(width, dtype=torch.bool, device=items_BT.device)
        mask_B1TT = ((causal_TT & real_BT[:, None, :]) | itself_TT)[:, None]
        for block in self.blocks:
            x_BTD = block(x_BTD, mask_B1TT)
        out: Tensor = self.norm(x_BTD)
        return out


class _Block(nn.Module):
    def __init__(self, dimension: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dimension), nn.LayerNorm(dimension)
        self.qkv, self.joined = nn.Linear(dimension, 3 * dimension), nn.Linear(dimension, dimension)
        self.wide, self.narrow = nn.Linear(dimension, 2 * dimension), nn.Linear(2 * dimension, dimension)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, mask_B1TT: Tensor) -> Tensor:
        batch, width, dimension = x_BTD.shape
        parts = self.qkv(self.before(x_BTD)).view(batch, width, 3, self.heads, dimension // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask_B1TT)
        x_BTD = x_BTD + self.dropout(self.joined(attended.transpose(1, 2).reshape(batch, width, dimension)))
        wide = self.dropout(F.gelu(self.wide(self.between(x_BTD))))
        out: Tensor = x_BTD + self.dropout(self.narrow(wide))
        return out


class Caser(Network):
    """Tang & Wang 2018: convolutions over the last items, along time and along the embedding.

    Unlike the publication: one target per window, the next item, not the next T; no user embedding (test users are new
    here, so there is none to look up) but a second linear layer in its place; output embeddings are those of the input.
    """

    every_position = False

    def __init__(self, n_items: int, *, dimension: int, layers: int, dropout: float, length: int, heads: int) -> None:
        super().__init__(n_items, dimension, dropout)
        self.length = length
        wide, deep = 16, 4
        self.across = nn.ModuleList(nn.Conv2d(1, wide, (h, dimension)) for h in range(1, length + 1))
        self.along = nn.Conv2d(1, deep, (length, 1))
        self.hidden = nn.Linear(wide * length + deep * dimension, dimension)
        self.out = nn.Linear(dimension, dimension)

    def forward(self, items_BT: Tensor) -> Tensor:
        missing = self.length - items_BT.shape[1]
        items_BT = F.pad(items_BT, (missing, 0), value=self.n_items) if missing > 0 else items_BT[:, -self.length :]
        image_BTD = self.items(items_BT)
        features = [F.relu(_over_windows(conv, image_BTD)).amax(1) for conv in self.across]
        features.append(self.along(image_BTD[:, None]).flatten(1))
        hidden_BD = F.relu(self.hidden(self.dropout(torch.cat(features, 1))))
        out: Tensor = self.out(self.dropout(hidden_BD))[:, None]
        return out


def _over_windows(conv: nn.Module, image_BTD: Tensor) -> Tensor:
    """A convolution as wide as the embedding, at every place: [B, T − h + 1, filters]. One product of matrices, which
    on CPUs takes less than half the time of a Conv2d with one input channel."""
    assert isinstance(conv, nn.Conv2d)
    rows, n, width = image_BTD.shape
    height = conv.kernel_size[0]
    windows_BWX = image_BTD.unfold(1, height, 1).transpose(2, 3).reshape(rows, n - height + 1, height * width)
    return F.linear(windows_BWX, conv.weight.flatten(1), conv.bias)


NETWORKS: dict[str, type[Network]] = {"sasrec": SASRec, "gru4rec": GRU4Rec, "caser": Caser}
