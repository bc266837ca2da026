"""What a language model says behind prefixes of titles: a prompt is read once, and each prefix is one token more.

`CachedPrefixes` keeps the keys and values of the prompts and of every opened prefix, and runs nothing but the new
tokens under a mask that shows each its own ancestors. `SeparatePrefixes` reads prompt and prefix anew each time: slow,
for architectures whose masks are not known to be right, and the oracle for the other.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache

from sirius_rec.errors import ScoringError
from sirius_rec.rankers.catalogue.trie import Ints
from sirius_rec.scoring.head import scoring_head
from sirius_rec.scoring.masks import cached_masks, first_range, refusal
from sirius_rec.scoring.packed import takes_logits_to_keep, unwrapped, use_tree_attention
from sirius_rec.scoring.rows import BATCH_TOKENS
from sirius_rec.scoring.tree_attention import TREE_ATTENTION

Logps = npt.NDArray[np.float64]


class Prefixes(Protocol):
    """Prefixes of titles behind U users' prompts, opened step by step. Users are numbered as they were given."""

    def begin(self, source_M: Ints, target_M: Ints) -> Logps:
        """Read the prompts; log π of token target_M[m] right behind the prompt of user source_M[m], sorted."""
        ...

    def open(self, user_n: Ints, parent_n: Ints, token_n: Ints, source_M: Ints, target_M: Ints) -> tuple[Ints, Logps]:
        """Open n prefixes, sorted by user: each is its parent's place (−1: the prompt) and one token more.

        Gives their places, and log π of token target_M[m] behind prefix source_M[m] of these n, sorted.
        """
        ...

    def keep(self, users: Sequence[int]) -> None:
        """Go on with these users only, numbered anew from 0."""
        ...


def prefixes_of(model: Any, prompts: Sequence[Sequence[int]], pad_id: int, *, bf16: bool, naive: bool) -> Prefixes:
    """The cached ones, or separate ones where they are asked for or the architecture has not been checked."""
    base = unwrapped(model)
    if naive or refusal(base.config):
        return SeparatePrefixes(model, prompts, bf16=bf16)
    return CachedPrefixes(model, prompts, pad_id, bf16=bf16)


class CachedPrefixes:
    """Prefixes on a growing cache. Prompts are padded on the left, so that all end in one column."""

    def __init__(self, model: Any, prompts: Sequence[Sequence[int]], pad_id: int, *, bf16: bool = False) -> None:
        self.model, self.base, self.pad_id, self.bf16 = model, unwrapped(model), pad_id, bf16
        self.device = next(model.parameters()).device
        self.length_U = np.array([len(prompt) for prompt in prompts])
        width = int(self.length_U.max())
        self.prompt_UT = np.full((len(prompts), width), pad_id)
        self.real_UT = np.arange(width) >= width - self.length_U[:, None]
        self.prompt_UT[self.real_UT] = np.concatenate([np.asarray(prompt) for prompt in prompts])
        # Of each node of the cache behind the prompts: the place of its parent, and its distance from the prompt's end.
        self.parent_UK = np.empty((len(prompts), 0), dtype=np.int64)
        self.depth_UK = np.empty((len(prompts), 0), dtype=np.int64)
        # Without the model's configuration no layer forgets what leaves its window: nodes stand in no order of time.
        self.cache = DynamicCache()
        # Flex attention has masks of its own kind, which are made for whole trees.
        if use_tree_attention(model) == "flex_attention":
            self.base.set_attn_implementation(TREE_ATTENTION)

    def begin(self, source_M: Ints, target_M: Ints) -> Logps:
        users, width = self.prompt_UT.shape
        column = np.arange(width)
        seen_UTT = (column <= column[:, None]) & self.real_UT[:, None] | np.eye(width, dtype=bool)
        last_U = np.arange(users) * width + width - 1
        return self._forward(self.prompt_UT, self._positions(), seen_UTT, last_U, source_M, target_M)

    def open(self, user_n: Ints, parent_n: Ints, token_n: Ints, source_M: Ints, target_M: Ints) -> tuple[Ints, Logps]:
        (users, width), before = self.prompt_UT.shape, self.parent_UK.shape[1]
        count_U = np.bincount(user_n, minlength=users)
        column_n = np.arange(len(user_n)) - (np.cumsum(count_U) - count_U)[user_n]
        new = int(count_U.max())

        def laid_out(values_n: Ints, filling: int) -> Ints:
            laid = np.full((users, new), filling)
            laid[user_n, column_n] = values_n
            return laid

        depth_n = np.where(parent_n < 0, 0, self.depth_UK[user_n, parent_n] + 1) if before else np.zeros_like(parent_n)
        self.parent_UK = np.concatenate([self.parent_UK, laid_out(parent_n, -1)], 1)
        self.depth_UK = np.concatenate([self.depth_UK, laid_out(depth_n, 0)], 1)
        seen_UWL = np.zeros((users, new, width + before + new), dtype=bool)
        seen_UWL[:, :, :width] = self.real_UT[:, None]
        seen_UWL[:, np.arange(new), width + before + np.arange(new)] = True
        at_n, user_a, column_a = parent_n, user_n, column_n
        while (above := at_n >= 0).any():  # one turn for each token of the longest prefix
            at_n, user_a, column_a = at_n[above], user_a[above], column_a[above]
            seen_UWL[user_a, column_a, width + at_n] = True
            at_n = self.parent_UK[user_a, at_n]
        position_UL = np.concatenate([self._positions(), self.length_U[:, None] + self.depth_UK], 1)
        keep_n = user_n * new + column_n
        tokens_UW = laid_out(token_n, self.pad_id)
        logp_M = self._forward(tokens_UW, position_UL, seen_UWL, keep_n, source_M, target_M)
        return before + column_n, logp_M

    def _positions(self) -> Ints:
        """Of the prompts' columns; 0 of the padding."""
        width = self.prompt_UT.shape[1]
        return np.asarray(np.maximum(np.arange(width) - (width - self.length_U[:, None]), 0))

    @torch.no_grad()
    def _forward(
        self, tokens_UW: Ints, position_UL: Ints, seen_UWL: Any, keep_N: Ints, source_M: Ints, target_M: Ints
    ) -> Logps:
        """Run W new tokens of each user; L counts the tokens in the cache and these, which are its last."""
        limit = first_range(self.base.config)
        if limit is not None and position_UL.max() >= limit:
            raise ScoringError(
                f"a prompt with a title takes {position_UL.max() + 1} tokens and leaves the first range of the model's "
                f"rotary positions ({limit} tokens): use shorter histories, or scoring: naive"
            )
        at = self._on_device
        place_UL = at(position_UL)
        place_UW = place_UL[:, -tokens_UW.shape[1] :]
        distance_UWL = place_UW[:, :, None] - place_UL[:, None]
        mask = cached_masks(self.base.config, at(seen_UWL), distance_UWL, self.base.dtype)
        inputs: dict[str, Any] = {
            "input_ids": at(tokens_UW),
            "position_ids": place_UW,
            "attention_mask": mask,
            "past_key_values": self.cache,
            "use_cache": True,
        }
        if getattr(self.base.config, "output_router_logits", False):  # for a loss of theirs that reads the mask as 2-D
            inputs["output_router_logits"] = False
        head = scoring_head(self.base, at(keep_N), at(source_M), at(target_M))
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16), head:
            found = self.model(**inputs).logits[0]
        return _as_logps(found)

    def _on_device(self, values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.device)

    def keep(self, users: Sequence[int]) -> None:
        kept = np.asarray(users)
        for name in ("length_U", "prompt_UT", "real_UT", "parent_UK", "depth_UK"):
            setattr(self, name, getattr(self, name)[kept])
        self.cache.batch_select_indices(self._on_device(kept))


class SeparatePrefixes:
    """Each prefix behind its prompt as an ordinary text, in batches of equal length: right for any causal model."""

    def __init__(
        self, model: Any, prompts: Sequence[Sequence[int]], *, bf16: bool = False, max_tokens: int = BATCH_TOKENS
    ) -> None:
        self.model, self.bf16, self.max_tokens = model, bf16, max_tokens
        self.device = next(model.parameters()).device
        self.prompts = [list(prompt) for prompt in prompts]
        self.texts: list[list[list[int]]] = [[] for _ in prompts]  # by user and place

    def begin(self, source_M: Ints, target_M: Ints) -> Logps:
        return self._logps(self.prompts, source_M, target_M)

    def open(self, user_n: Ints, parent_n: Ints, token_n: Ints, source_M: Ints, target_M: Ints) -> tuple[Ints, Logps]:
        rows, places = [], []
        for user, parent, token in zip(user_n.tolist(), parent_n.tolist(), token_n.tolist(), strict=True):
            above = self.prompts[user] if parent < 0 else self.texts[user][parent]
            rows.append([*above, token])
            places.append(len(self.texts[user]))
            self.texts[user].append(rows[-1])
        return np.array(places), self._logps(rows, source_M, target_M)

    @torch.no_grad()
    def _logps(self, rows: list[list[int]], source_M: Ints, target_M: Ints) -> Logps:
        start_R = np.searchsorted(source_M, np.arange(len(rows) + 1))
        logp_M = np.empty(len(target_M))
        by_length: defaultdict[int, list[int]] = defaultdict(list)
        for r, row in enumerate(rows):
            by_length[len(row)].append(r)
        last = {"logits_to_keep": 1} if takes_logits_to_keep(self.model) else {}
        for length, alike in by_length.items():
            size = max(self.max_tokens // length, 1)
            for some in (alike[at : at + size] for at in range(0, len(alike), size)):
                ids = torch.tensor([rows[r] for r in some], device=self.device)
                with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
                    logits_RV = self.model(input_ids=ids, use_cache=False, **last).logits[:, -1]
                logits_RV = logits_RV if logits_RV.dtype is torch.float64 else logits_RV.float()
                for r, logp_V in zip(some, torch.log_softmax(logits_RV, -1), strict=True):
                    part = slice(start_R[r], start_R[r + 1])
                    logp_M[part] = _as_logps(logp_V[torch.from_numpy(target_M[part]).long().to(self.device)])
        return logp_M

    def keep(self, users: Sequence[int]) -> None:
        self.prompts = [self.prompts[user] for user in users]
        self.texts = [self.texts[user] for user in users]


def _as_logps(found: Tensor) -> Logps:
    """At most 0, which rounding may pass by: the search relies on sums that only fall."""
    return found.double().clamp(max=0.0).cpu().numpy()
