"""The titles of a catalogue as a trie of token ids in arrays: which tokens may follow a prefix, which titles it has.

Nodes are numbered level by level and in a level as the titles below them sort, so the children of a node are
neighbours, and so are its titles. Built without a loop over tokens: a million titles take seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sirius_rec import atomic, cache
from sirius_rec.errors import DataError, PromptError, RunError
from sirius_rec.prompts.encoding import Encoder

Ints = npt.NDArray[np.integer[Any]]
ROOT = 0
_PART = 1 << 16  # titles tokenised at once
# Building the trie of fewer titles takes less than a second; of more it is kept in the cache, named by its key.
_KEPT_FROM = 20_000


@dataclass(frozen=True)
class Trie:
    """N nodes, the root first; S titles as their token ids sort, each with its end of sequence.

    token_N: the token that leads to a node; −1 of the root. parent_N: −1 of the root. depth_N: tokens with that one.
    child_N: the children of node n are child_N[n] … child_N[n + 1] − 1; a title's last node has none. N + 1 entries.
    first_N, end_N: the titles below node n are first_N[n] … end_N[n] − 1.
    item_S: the item whose title it is. place_I: the title of an item.
    key: what it was made of (`trie_key`).
    """

    token_N: Ints
    parent_N: Ints
    depth_N: Ints
    child_N: Ints
    first_N: Ints
    end_N: Ints
    item_S: Ints
    place_I: Ints
    key: str

    @property
    def n_titles(self) -> int:
        """Titles, as many as items."""
        return len(self.item_S)

    @property
    def n_inner(self) -> int:
        """Prefixes that something follows: what a model has to read to score every title."""
        return int((self.child_N[1:] > self.child_N[:-1]).sum())

    @property
    def longest(self) -> int:
        """Tokens of the longest title, the end of sequence with them."""
        return int(self.depth_N[-1])

    def children(self, nodes: Ints) -> tuple[Ints, Ints]:
        """The children of nodes, and for each of them the position in `nodes` of its parent."""
        first, count = self.child_N[nodes].astype(np.int64), self.child_N[nodes + 1] - self.child_N[nodes]
        of = np.repeat(np.arange(len(nodes)), count)
        return np.arange(len(of)) - np.repeat(np.cumsum(count) - count - first, count), of

    def is_leaf(self, nodes: Ints) -> npt.NDArray[np.bool_]:
        """Whether a node ends a title."""
        return np.asarray(self.child_N[nodes] == self.child_N[nodes + 1])

    def left(self, nodes: Ints, out: Ints) -> Ints:
        """How many titles below each node are left when those at the sorted places `out` are taken away."""
        taken = np.searchsorted(out, self.end_N[nodes]) - np.searchsorted(out, self.first_N[nodes])
        return np.asarray(self.end_N[nodes] - self.first_N[nodes] - taken)

    def tokens(self, node: int) -> list[int]:
        """The tokens from the root to a node."""
        found: list[int] = []
        while node != ROOT:
            found.append(int(self.token_N[node]))
            node = int(self.parent_N[node])
        return found[::-1]

    def leaves(self) -> Ints:
        """The last node of each title, in their order."""
        ends = np.flatnonzero(self.child_N[1:] == self.child_N[:-1])
        leaf_S = np.empty(self.n_titles, dtype=np.int64)
        leaf_S[self.first_N[ends]] = ends
        return leaf_S

    def save(self, path: Path) -> None:
        """Write an .npz file, whole or not at all."""
        atomic.write_npz(path, {f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def load(cls, path: Path, key: str) -> Trie:
        """RunError for a file that cannot be read, or that was made of another catalogue or tokenizer than `key`."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {f.name: stored[f.name] for f in fields(cls)}
        except Exception as error:  # truncated, no zip, an entry missing
            raise RunError(f"{path}: cannot be read as a catalogue's trie ({error}): remove it") from error
        found = str(arrays.pop("key"))
        if found != key:
            raise RunError(
                f"{path}: this trie was made of another catalogue or tokenizer ({found[:12]}…, wanted {key[:12]}…): "
                "remove it, or name another file"
            )
        return cls(**arrays, key=found)


def trie_key(encoder: Encoder, titles: Sequence[str]) -> str:
    """Hex SHA-256 of a catalogue in its order and of everything that its token ids depend on."""
    tokenizer = encoder.tokenizer
    backend = getattr(tokenizer, "backend_tokenizer", None)
    vocabulary = backend.to_str() if backend is not None else repr(sorted(tokenizer.get_vocab().items()))
    digest = hashlib.sha256(vocabulary.encode())
    digest.update(f"\n{type(tokenizer).__name__} {encoder.eos_id} {encoder.chat and tokenizer.chat_template}".encode())
    for part in _parts(titles):
        digest.update("\0".join(["", *part]).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def build_trie(encoder: Encoder, titles: Sequence[str], path: Path | None = None) -> Trie:
    """The trie of a catalogue, by item number. With a path it is kept there, and read where it is there already.

    DataError for an item without a title, PromptError for titles that the tokenizer cannot tell apart.
    """
    missing = next((item for item, title in enumerate(titles) if not title), None)
    if missing is not None:
        raise DataError(f"catalogue: item number {missing} has no title: give it one, or leave it out")
    if not len(titles):
        raise DataError("catalogue: it has no items: there is nothing to recommend")
    key = trie_key(encoder, titles)
    if path is not None and path.exists():
        return Trie.load(path, key)
    flat: list[Ints] = []
    lengths: list[Ints] = []
    for part in _parts(titles):
        ids = encoder.completions(part)
        lengths.append(np.fromiter(map(len, ids), dtype=np.int64, count=len(ids)))
        flat.append(np.fromiter((i for title in ids for i in title), dtype=np.int32, count=int(lengths[-1].sum())))
    trie = trie_of(np.concatenate(flat), np.concatenate(lengths), titles, special=encoder.special, key=key)
    if path is not None:
        trie.save(path)
    return trie


def catalogue_trie(encoder: Encoder, titles: Sequence[str]) -> Trie:
    """`build_trie`, kept in the cache where building takes longer than reading."""
    if len(titles) < _KEPT_FROM:
        return build_trie(encoder, titles)
    return build_trie(encoder, titles, cache.root() / f"catalogue-{trie_key(encoder, titles)[:16]}.npz")


def _parts(titles: Sequence[str]) -> Iterator[list[str]]:
    left = iter(titles)
    while part := list(islice(left, _PART)):
        yield part


def trie_of(flat: Ints, length_I: Ints, titles: Sequence[str], *, special: set[int], key: str) -> Trie:
    """The trie of token ids, one item behind the other. titles: for messages. special: ids that no title may hold."""
    start_I = np.cumsum(length_I) - length_I
    inside = np.ones(len(flat), dtype=bool)
    inside[start_I + length_I - 1] = False
    wrong = np.flatnonzero(inside & np.isin(flat, list(special)))
    if wrong.size:
        item = int(np.searchsorted(start_I, wrong[0], side="right")) - 1
        raise PromptError(f"title {titles[item]!r} contains a special token of the tokenizer: change the title")
    # Big-endian, so that bytes sort as the ids do; comparing bytes is far faster than comparing lists.
    text = flat.astype(">i4").tobytes()
    ends = (start_I + length_I) * 4
    order = [text[a:b] for a, b in zip((start_I * 4).tolist(), ends.tolist(), strict=True)]
    item_S = np.array(sorted(range(len(order)), key=order.__getitem__), dtype=np.int32)
    start_S, length_S = start_I[item_S], length_I[item_S]
    shared_S = _shared(flat, start_S, length_S)
    whole = np.flatnonzero(shared_S[1:] == length_S[:-1]) + 1
    if whole.size:
        one, other = (titles[int(i)] for i in sorted(item_S[whole[0] - 1 : whole[0] + 1].tolist()))
        equal = length_S[whole[0] - 1] == length_S[whole[0]]
        reason = "have the same token ids: the tokenizer lacks their characters" if equal else (
            "begin alike to the end of one of them: no model can end the shorter one")  # fmt: skip
        raise PromptError(f"titles {one!r} and {other!r} {reason}")
    place_I = np.empty(len(item_S), dtype=np.int32)
    place_I[item_S] = np.arange(len(item_S), dtype=np.int32)
    return Trie(**_levels(flat, start_S, length_S, shared_S), item_S=item_S, place_I=place_I, key=key)


def _shared(flat: Ints, start_S: Ints, length_S: Ints) -> Ints:
    """How many tokens each title has in common with the one before it; 0 of the first."""
    shared_S = np.zeros(len(start_S), dtype=np.int64)
    alike = np.arange(1, len(start_S))
    depth = 0
    while alike.size:
        alike = alike[np.minimum(length_S[alike], length_S[alike - 1]) > depth]
        alike = alike[flat[start_S[alike] + depth] == flat[start_S[alike - 1] + depth]]
        depth += 1
        shared_S[alike] = depth
    return shared_S


def _levels(flat: Ints, start_S: Ints, length_S: Ints, shared_S: Ints) -> dict[str, Ints]:
    """The arrays of the nodes: level by level, in a level by their first titles."""
    n = len(start_S)
    tokens, parents, firsts, ends = [np.array([-1])], [np.array([-1])], [np.array([0])], [np.array([n])]
    before, base = np.array([0]), 0  # first titles of the level above, and the number of its first node
    for depth in range(int(length_S.max())):
        borders = np.flatnonzero(shared_S <= depth)  # where another prefix of depth + 1 tokens begins
        first = borders[length_S[borders] > depth]
        end = np.append(borders, n)[np.searchsorted(borders, first, side="right")]
        tokens.append(flat[start_S[first] + depth])
        parents.append(base + np.searchsorted(before, first, side="right") - 1)
        firsts.append(first)
        ends.append(end)
        before, base = first, base + len(before)
    parent_N = np.concatenate(parents)
    counts = np.bincount(parent_N[1:], minlength=len(parent_N))
    return {
        "token_N": np.concatenate(tokens).astype(np.int32),
        "parent_N": parent_N.astype(np.int32),
        "depth_N": np.repeat(np.arange(len(tokens), dtype=np.int32), list(map(len, tokens))),
        # Level by level, children stand in the order of their parents.
        "child_N": (1 + np.concatenate([[0], np.cumsum(counts)])).astype(np.int32),
        "first_N": np.concatenate(firsts).astype(np.int32),
        "end_N": np.concatenate(ends).astype(np.int32),
    }
