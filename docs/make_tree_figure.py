"""Draws docs/candidate_tree.png: the tree of three rows of one user, laid out by the library itself.

python docs/make_tree_figure.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from sirius_rec.scoring.rows import PromptCompletions
from sirius_rec.scoring.tree import CandidateTree, build_tree

WORDS = ["<end>", "Heard:", "Air", "↵", "Can", "Low", "Red", "House", "Painters", "Pulp"]
ID = {word: number for number, word in enumerate(WORDS)}


def ids(text: str) -> list[int]:
    return [ID[word] for word in text.split()]


# A prompt is the history, a line each; the target and one negative are possible next lines.
ROWS = [
    PromptCompletions(ids("Heard: Air ↵"), [ids("Can <end>"), ids("Red <end>")]),
    PromptCompletions(ids("Heard: Air ↵ Can ↵"), [ids("Low <end>"), ids("Red House Painters <end>")]),
    PromptCompletions(ids("Heard: Air ↵ Can ↵ Low ↵"), [ids("Red <end>"), ids("Pulp <end>")]),
]


def places(tree: CandidateTree) -> dict[int, tuple[int, int]]:
    """Node → (depth, line): a node's first child stays on its line, each further one begins a line below."""
    line, out, open_nodes = -1, {}, []
    for t, (depth, exit_) in enumerate(zip(tree.depth_T.tolist(), tree.exit_T.tolist(), strict=True)):
        while open_nodes and tree.exit_T[open_nodes[-1]] <= t:
            open_nodes.pop()
        line += not open_nodes or open_nodes[-1] != t - 1
        out[t] = (depth, line)
        open_nodes.append(t)
        assert exit_ > t
    return out


def parent(tree: CandidateTree, t: int) -> int | None:
    above = [s for s in range(t) if t < tree.exit_T[s]]
    return above[-1] if above else None


def draw(axes: Any, tree: CandidateTree) -> None:
    at, kept = places(tree), set(tree.keep_N.tolist())
    for t, (depth, line) in at.items():
        colour = "#0072B2" if t in kept else "#444444"
        axes.text(depth, -line, WORDS[tree.token_T[t]], ha="center", va="center", color=colour, fontsize=11)
        above = parent(tree, t)
        if above is not None:
            x, y = at[above]
            style = {"color": "#BBBBBB", "lw": 1, "zorder": 0}
            axes.plot([x + 0.33, x + 0.5, x + 0.5, depth - 0.33], [-y, -y, -line, -line], **style)
    axes.set_xlim(-0.6, max(depth for depth, _ in at.values()) + 0.6)
    axes.set_ylim(-max(line for _, line in at.values()) - 0.6, 0.6)
    axes.axis("off")


def main() -> None:
    tree = build_tree(ROWS)
    separate = sum(len(row.prompt) + len(y) - 1 for row in ROWS for y in row.completions)
    figure = Figure(figsize=(9.5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    draw(axes, tree)
    axes.set_title(
        f"Three rows of a user with two candidates each: {tree.n_nodes} nodes instead of {separate} tokens in separate "
        "rows.\nBlue: a scored token is read off here (the end of a title, too).",
        fontsize=10,
        loc="left",
    )
    figure.savefig(Path(__file__).with_name("candidate_tree.png"), dpi=140)


if __name__ == "__main__":
    main()
