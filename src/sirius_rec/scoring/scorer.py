"""The scorer that training, evaluation and the reference cache share: trees where known to be right, else naive.

Without gradient, models with recurrent layers are scored from copies of the prompt's cache (`forked`).
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import torch
from torch import Tensor, nn

from sirius_rec.errors import ScoringError
from sirius_rec.processes import log
from sirius_rec.scoring.forked import Passes, common, forked_logps, passes
from sirius_rec.scoring.kept import KeptScores
from sirius_rec.scoring.masks import can_be_forked, refusal
from sirius_rec.scoring.naive import in_parts, naive_logps
from sirius_rec.scoring.packed import context_of, in_half_precision, in_mode, tree_logps, unwrapped, use_tree_attention
from sirius_rec.scoring.prefix_cache import PrefixCache
from sirius_rec.scoring.rows import BATCH_TOKENS, PromptCompletions, check_context
from sirius_rec.scoring.tree import build_tree

MODES = ("auto", "packed", "naive")
_EAGER = 1024  # nodes at a time under eager attention, which takes memory with their square
_CHECKED = 4  # candidates of a row that the self-check compares
_RIGHT: WeakKeyDictionary[nn.Module, set[str]] = WeakKeyDictionary()  # kernels that `check_once` found right


def resolve_mode(model: nn.Module, mode: str) -> str:
    """How log-probs with gradient are computed for the asked `mode`: `packed`, as a tree, or `naive`.

    Raises ScoringError if packed was demanded and is not known to be right.
    """
    if mode not in MODES:
        raise ScoringError(f"unknown scoring '{mode}': choose one of {', '.join(MODES)}")
    reason = refusal(unwrapped(model).config)
    if mode == "packed" and reason:
        raise ScoringError(f"packed scoring refused: {reason}; set scoring: naive")
    return "naive" if mode == "naive" or reason else "packed"


def resolve_scoring(model: nn.Module, mode: str) -> str:
    """How `score_rows`, which needs no gradient, computes the asked `mode`: `resolve_mode`, or `forked` under auto."""
    resolved = resolve_mode(model, mode)
    return "forked" if mode == "auto" and resolved == "naive" and can_be_forked(unwrapped(model).config) else resolved


def training_mode(model: nn.Module, mode: str) -> str:
    """`resolve_mode`; says once where the steps of a training cost more than the same model's scoring does."""
    if resolve_scoring(model, mode) == "forked":
        _say(
            f"scoring: '{unwrapped(model).config.model_type}' has recurrent layers, through which candidates cannot "
            "share a prompt's gradient: it trains with a row for each (naive), and scores with the prompt computed once"
        )
    return resolve_mode(model, mode)


@cache
def _say(text: str) -> None:
    log(text)


def logps(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    mode: str,
    size: Passes = Passes(),
) -> Tensor:
    """log π(y|x), [B, C] in nats, by the resolved `mode`, on the model's device; with gradient where enabled.

    C is the number of candidates of the row that has most; columns that a row lacks are 0. size: of forked rows. Forked
    ones have no gradient. ScoringError for another mode than packed, naive and forked.
    """
    if mode not in _BATCHES:
        raise ScoringError(f"scoring '{mode}': log-probs are computed packed, naive or forked (`resolve_scoring`)")
    device = next(model.parameters()).device
    if mode == "forked":
        return forked_logps(model, rows, pad_id, device, size)
    if mode == "naive":
        return naive_logps(model, rows, pad_id, device)
    return tree_logps(model, build_tree(rows).to(device))


def self_check(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int, mode: str = "packed") -> float:
    """Largest |packed − naive| log-prob over `rows` (nats); raises ScoringError beyond what rounding explains.

    float32: 1e-3. Half precision: 2 % of the log-prob plus 0.1 nat, which a wrong mask still exceeds by far. All
    candidates are packed, and up to `_CHECKED` of each row compared: separate rows of whole slates would not fit.
    mode: `packed`, or `forked`, of which only those compared are computed.
    """
    chosen = [_spread(len(row.completions)) for row in rows]
    some = [row.only(columns) for row, columns in zip(rows, chosen, strict=True)]
    with in_mode(model, training=False), torch.no_grad():
        ours_BC = logps(model, some if mode == "forked" else rows, pad_id, mode)
        naive_BC = logps(model, some, pad_id, "naive")
    places = [list(range(len(cs))) for cs in chosen]
    ours_N = torch.cat([ours_BC[b, cs] for b, cs in enumerate(places if mode == "forked" else chosen)])
    naive_N = torch.cat([naive_BC[b, cs] for b, cs in enumerate(places)])
    return require_agreement(model, ours_N, naive_N, mode)


def require_agreement(model: nn.Module, found_N: Tensor, naive_N: Tensor, how: str, *, half: bool = False) -> float:
    """Largest difference between log-probs and those of separate passes; ScoringError beyond what rounding explains,
    and for what is no number.

    half: float32 weights that compute in half precision.
    """
    if not bool(torch.isfinite(naive_N).all()):
        raise ScoringError(
            "the model gives log-probs that are no numbers, in separate forward passes too: its weights are damaged, "
            "or their training diverged: make or fetch them again"
        )
    difference_N = (found_N - naive_N).abs()
    in_half = half or in_half_precision(model)
    allowed_N = 0.1 + 0.02 * naive_N.abs() if in_half else torch.full_like(naive_N, 1e-3)
    worst = float(difference_N.max())
    if not bool((difference_N <= allowed_N).all()):
        raise ScoringError(
            f"{how} scoring disagrees with separate forward passes by {worst:.3g} nats on the first rows: "
            "set scoring: naive and report the architecture"
        )
    return worst


def _spread(n: int) -> list[int]:
    """At most `_CHECKED` of n candidates: the first, the last, and some between."""
    return sorted({c * (n - 1) // (_CHECKED - 1) for c in range(_CHECKED)})


def check_once(model: nn.Module, rows: Sequence[PromptCompletions], pad_id: int, mode: str) -> None:
    """`self_check` on a few candidates of the first row, once for each model and attention kernel, unless naive.

    mode: as asked for. In a process group call it in all processes, on the same rows.
    """
    resolved = resolve_scoring(model, mode)
    if not rows or resolved == "naive":
        return
    kernel = f"{resolved} {use_tree_attention(model)}"
    if kernel not in _RIGHT.get(model, ()):
        self_check(model, [PromptCompletions(rows[0].prompt, rows[0].completions[:3])], pad_id, resolved)
        _RIGHT.setdefault(model, set()).add(kernel)


def tree_batches(rows: Sequence[PromptCompletions], max_tokens: int) -> list[list[int]]:
    """Row numbers in batches whose trees have at most `max_tokens` nodes, or one row.

    Rows with common beginnings are neighbours, so that a batch computes them once; where a batch is full it ends at the
    border that shares least with what comes behind it, such as that between two users.
    """
    # Big-endian, so that bytes sort as the ids do.
    prompts = [np.asarray(row.prompt, dtype=">i4") for row in rows]
    order = sorted(range(len(rows)), key=lambda r: prompts[r].tobytes())
    shared = [0, *(_shared(prompts[a], prompts[b]) for a, b in itertools.pairwise(order))]
    batches: list[list[int]] = []
    start = 0
    while start < len(order):
        size, end = 0, start
        while end < len(order):
            more = rows[order[end]].packed_length - (shared[end] if end > start else 0)
            if end > start and size + more > max_tokens:
                break
            size, end = size + more, end + 1
        if end < len(order):
            cuts = range(end, start + (end - start) // 2, -1)
            end = min(cuts, key=lambda cut: shared[cut])
        batches.append(order[start:end])
        start = end
    return batches


def _shared(first: np.ndarray, second: np.ndarray) -> int:
    """How many ids two texts have in common from their beginning."""
    n = min(len(first), len(second))
    different = np.flatnonzero(first[:n] != second[:n])
    return int(different[0]) if len(different) else n


def padded_batches(rows: Sequence[PromptCompletions], max_tokens: int) -> list[list[int]]:
    """Row numbers in batches of similar length whose separate rows, padded, stay within `max_tokens`, or one row."""
    width_R = [row.longest_path + 1 for row in rows]
    batches: list[list[int]] = []
    size = 0  # separate rows of the last batch
    for r in sorted(range(len(rows)), key=lambda r: width_R[r]):
        own = len(rows[r].completions)
        if batches and width_R[r] * (size + own) <= max_tokens:
            batches[-1].append(r)
            size += own
        else:
            batches.append([r])
            size = own
    return batches


def single_rows(rows: Sequence[PromptCompletions], max_tokens: int) -> list[list[int]]:
    """Each row number alone, neighbours of similar length."""
    return [[r] for r in sorted(range(len(rows)), key=lambda r: rows[r].longest_path)]


_BATCHES = {"packed": tree_batches, "naive": padded_batches, "forked": single_rows}


@torch.no_grad()
def score_rows(
    model: nn.Module,
    rows: Sequence[PromptCompletions],
    pad_id: int,
    *,
    mode: str = "auto",
    max_tokens: int = BATCH_TOKENS,
    bf16: bool = False,
    progress: Callable[[int], None] | None = None,
    prefixes: PrefixCache | None = None,
    together: bool = True,
    kept: KeptScores | None = None,
) -> list[np.ndarray]:
    """log π(y|x) of every candidate of every row, in row order: one float32 array of C values (nats) per row.

    `max_tokens` bounds what a batch computes: the nodes of its tree, in naive mode its padded rows (a slate that
    exceeds it is scored in parts), and of forked rows what the copies of the prompt and their candidates hold. `bf16`:
    compute float32 weights in bfloat16, as training with bf16 does; policy and reference must agree on it. `progress`
    gets the rows just done, by all processes. `prefixes`: keeps prompts between calls; of use in packed mode alone.
    `kept`: where scores are put as they come, and taken from where they are.

    In a process group every process scores its share and all get all scores: call it in all of them, on the same rows.
    Not `together`, each scores what it is given, for itself; of a sharded model all must be given the same.

    Raises PromptError for rows beyond the model's context, ScoringError for a mode that the model does not have.
    """
    mode = resolve_scoring(model, mode)
    check_context(rows, context_of(model))
    rank, processes = place_in_group() if together else (0, 1)
    # Parts of rows, so that every batch is one forward pass: a sharded model needs as many in all its processes.
    parts, owner_P = in_parts(rows, max_tokens) if mode == "naive" else (rows, list(range(len(rows))))
    if mode == "packed" and use_tree_attention(model) == "eager":
        max_tokens = min(max_tokens, _EAGER)
    known = {} if kept is None else kept.begin(f"{mode} {max_tokens} {bf16} {len(parts)}")
    batches = [batch for batch in _BATCHES[mode](parts, max_tokens) if not all(p in known for p in batch)]
    own = dict(known) if rank == 0 else {}
    done = _Progress(owner_P, progress)
    if known:
        done.add(known)
    sizes = [passes(parts[p], max_tokens) if mode == "forked" else Passes() for p, *_ in batches]
    with in_mode(model, training=False):
        for turn in _turns(batches, sizes, rank, processes):
            some = [parts[p] for p in turn.batch]
            with torch.autocast(next(model.parameters()).device.type, dtype=torch.bfloat16, enabled=bf16):
                if prefixes is not None and mode == "packed":
                    found_BC = prefixes.logps(model, some)
                else:
                    found_BC = logps(model, some, pad_id, mode, turn.size)
            logp_BC = found_BC.float().cpu().numpy()
            if turn.counts:
                found = {p: logp_BC[b, : len(parts[p].completions)].copy() for b, p in enumerate(turn.batch)}
                own |= found
                if kept is not None:
                    kept.add(found)
            done.add(turn.done)
    scores_P = from_all(own, len(parts), processes)
    return scores_P if len(parts) == len(rows) else _joined(scores_P, owner_P)


class _Turn(NamedTuple):
    """What one process computes while each other process computes a batch of its own.

    batch: numbers of parts. counts: whether the scores are wanted. size: of forked rows. done: the parts that all
    processes together have scored with it.
    """

    batch: list[int]
    counts: bool
    size: Passes
    done: list[int]


def _turns(batches: list[list[int]], sizes: list[Passes], rank: int, processes: int) -> Iterator[_Turn]:
    """The turns of the process `rank`: of all processes equally many, of the same size each."""
    for start in range(0, len(batches), processes):
        dealt = range(start, min(start + processes, len(batches)))
        # Who has no batch left scores the first one again, for nobody: a sharded model needs all its processes.
        numbers = [*dealt, *[0] * (processes - len(dealt))]
        # The passes of the one that needs most.
        size = common([sizes[n] for n in numbers])
        yield _Turn(batches[numbers[rank]], rank < len(dealt), size, [p for n in dealt for p in batches[n]])


class _Progress:
    """Reports rows as they are done, each once all its parts are. owner_P: whose each part is."""

    def __init__(self, owner_P: Sequence[int], report: Callable[[int], None] | None) -> None:
        self.owner_P, self.report = owner_P, report
        self.left = Counter(owner_P)  # parts, by row

    def add(self, parts: Iterable[int]) -> None:
        rows = [self.owner_P[p] for p in parts]
        self.left.subtract(rows)
        if self.report:
            self.report(sum(not self.left[r] for r in set(rows)))


def _joined(scores_P: Sequence[np.ndarray], owner_P: Sequence[int]) -> list[np.ndarray]:
    """The scores of rows from those of their parts, which lie one behind the other."""
    parts = itertools.groupby(range(len(owner_P)), key=lambda p: owner_P[p])
    return [np.concatenate([scores_P[p] for p in own]) for _, own in parts]


def place_in_group() -> tuple[int, int]:
    """This process's rank and the number of processes, of a torch.distributed group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def from_all(own: dict[int, np.ndarray], n_rows: int, processes: int) -> list[np.ndarray]:
    """The scores of all processes in row order; ScoringError unless every row was scored exactly once. own: of this
    process, by row."""
    shares: list[dict[int, np.ndarray]] = [own]
    if processes > 1:
        shares = [{} for _ in range(processes)]
        torch.distributed.all_gather_object(shares, own)
    together = {r: logp_C for share in shares for r, logp_C in share.items()}
    if sorted(together) != list(range(n_rows)) or sum(map(len, shares)) != n_rows:
        raise ScoringError(f"{processes} processes scored {sum(map(len, shares))} rows instead of {n_rows}")
    return [together[r] for r in range(n_rows)]
