"""The objectives that have names, as differences from `Objective`'s defaults.

`LOSSES` is the only list of them: config choices, error messages, docs and test parameters come from it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from typing import Any

from sirius_rec.errors import ConfigError
from sirius_rec.objectives.losses import Objective


@dataclass(frozen=True)
class Preset:
    """A named objective: `label` for tables, `options` as differences from `Objective`'s defaults.

    formula: the loss of one example with one negative, z = r_i − r_j. source: whose it is.
    """

    label: str
    options: dict[str, Any] = field(default_factory=dict)
    formula: str = ""
    source: str = ""


# The margin of the SimPO presets: the middle of the paper's grid {0.4, 0.6, 0.8, 1.0}.
_SIMPO = {"reward": "simpo", "gamma": 0.6}
_NO_LN = {"reward": "simpo_no_ln", "gamma": 0.6, "filter": True}
_SOFTMAX = {"comparison": "softmax", "negatives": 3}
_NLL = {"comparison": "none", "reward": "simpo_no_ln", "nll_weight": 1.0}

_PAPER = "SIRIUS, Eq. 11"
_ALL = "−log σ(−log Σ_j exp(r_j − r_i))"

LOSSES: dict[str, Preset] = {
    "sft": Preset("SFT", _NLL, "−log π_i", "SIRIUS, Eq. 1"),
    "sft_continued": Preset("SFT continued", _NLL, "−log π_i", "a control"),
    "dpo": Preset("DPO", {}, "−log σ(z)", "Rafailov et al. 2023, arXiv 2305.18290"),
    "dpo_sirius": Preset("DPO + SIRIUS", {"anchor": "reference"}, "−log σ(z) − log σ(r_i − r_0)", _PAPER),
    "dpo_nll": Preset("DPO + NLL", {"nll_weight": 1.0}, "−log σ(z) − λ log π_i", "a control"),
    # λ = 1, per token: the NLL term of iterative reasoning preference optimisation.
    "rpo": Preset(
        "RPO (DPO + NLL per token)",
        {"nll_weight": 1.0, "nll_per_token": True},
        "−log σ(z) − λ log π_i / |y_i|",
        "Pang et al. 2024",
    ),
    "sft_reward_weighted": Preset(
        "SFT with DPO's weights", {"comparison": "weighted_positive"}, "−sg(σ(−z)) r_i", "a control"
    ),
    "softmax_dpo": Preset("S-DPO (softmax, 3)", _SOFTMAX, _ALL, "Chen et al. 2024, S-DPO"),
    "softmax_dpo_sirius": Preset(
        "S-DPO (softmax, 3) + SIRIUS", {**_SOFTMAX, "anchor": "reference"}, f"{_ALL} − log σ(r_i − r_0)", _PAPER
    ),
    "dmpo": Preset(
        "DMPO (mean, 3)",
        {"comparison": "mean", "negatives": 3},
        "−log σ(r_i − mean_j r_j)",
        "Bai et al. 2024, arXiv 2405.16127",
    ),
    # 15 of 19 negatives, β = 1, spread 1/2 and a margin of 6 nats: the defaults of the authors' code.
    "dynamicpo": Preset(
        "DynamicPO (DMPO, 15)",
        {"comparison": "mean", "negatives": 15, "boundary": True, "beta_spread": 0.5, "beta_margin": 6.0},
        "−log σ(mean_j s_j (r_i − r_j)) over boundary negatives",
        "Hu et al. 2026, arXiv 2605.00327",
    ),
    "softmax_dpo_all": Preset(
        "S-DPO (softmax, whole slate)", {**_SOFTMAX, "negatives": "all"}, _ALL, "S-DPO on every negative"
    ),
    "simpo": Preset("SimPO", _SIMPO, "−log σ(z − γ)", "Meng et al. 2024, arXiv 2405.14734"),
    "simpo_sirius": Preset(
        "SimPO + SIRIUS", {**_SIMPO, "anchor": "constant"}, "−log σ(z − γ) − log σ(r_i − c − γ)", _PAPER
    ),
    "simpo_no_ln": Preset("SimPO w/o LN", _NO_LN, "−log σ(z − γ) where z ≥ −γ", "SIRIUS, section 4.3 and E.3.1"),
    "simpo_no_ln_sirius": Preset(
        "SimPO w/o LN + SIRIUS",
        {**_NO_LN, "anchor": "constant"},
        "−log σ(z − γ) − log σ(r_i − c − γ) where z ≥ −γ",
        _PAPER,
    ),
    "simpo_no_ln_sirius_slate": Preset(
        "SimPO w/o LN + SIRIUS (slate anchor)",
        {**_NO_LN, "anchor": "slate"},
        "−log σ(z − γ) − log σ(r_i − max_y r − γ) where z ≥ −γ",
        "SIRIUS, Algorithm 1",
    ),
    "simpo_no_ln_nll": Preset(
        "SimPO w/o LN + NLL", {**_NO_LN, "nll_weight": 1.0}, "−log σ(z − γ) − λ log π_i where z ≥ −γ", "a control"
    ),
    "softmax_ref_free": Preset(
        "Reference-free softmax (whole slate)",
        {"reward": "simpo_no_ln", "comparison": "softmax", "negatives": "all"},
        _ALL,
        "nobody's paper",
    ),
    # As TRL has it: the DPO reward. SLiC-HF itself compares log π without a reference: reward simpo_no_ln.
    "slic_hinge": Preset(
        "SLiC (hinge)", {"link": "hinge"}, "max(0, 1 − z)", "Zhao et al. 2023, arXiv 2305.10425; Liu et al., 2309.06657"
    ),
    # Per token, as in TRL and the authors' experiments; the sums of the paper's equation are reward dpo.
    "ipo": Preset(
        "IPO", {"reward": "dpo_ln", "link": "squared"}, "((z − 1/2) / β)²", "Azar et al. 2023, arXiv 2310.12036"
    ),
    # ε = 0.1 in both: the value that TRL names as robust DPO's usual one.
    "cdpo": Preset(
        "cDPO (label smoothing)",
        {"link": "smoothed", "label_smoothing": 0.1},
        "−(1 − ε) log σ(z) − ε log σ(−z)",
        "Mitchell 2023, a note on DPO with noisy preferences",
    ),
    "robust_dpo": Preset(
        "Robust DPO",
        {"link": "robust", "label_smoothing": 0.1},
        "(−(1 − ε) log σ(z) + ε log σ(−z)) / (1 − 2ε)",
        "Chowdhury et al. 2024, arXiv 2403.00409",
    ),
    # λ = 50 is what others' implementations give as the paper's; β was 0.3 there.
    "dpop": Preset(
        "DPOP", {"dpop_lambda": 50.0}, "−log σ(z − λ max(0, −r_i))", "Pal et al. 2024, Smaug, arXiv 2402.13228"
    ),
    # The paper's NLL is summed over tokens; TRL's is their mean over the batch: nll_per_token for one example of it.
    "cpo": Preset(
        "CPO",
        {"reward": "simpo_no_ln", "nll_weight": 1.0},
        "−log σ(β log π_i − β log π_j) − λ log π_i",
        "Xu et al. 2024, arXiv 2401.08417",
    ),
    "simper": Preset(
        "SimPER",
        {"reward": "inverse_perplexity", "link": "linear"},
        "−exp(log π_i / |y_i|) + exp(log π_j / |y_j|)",
        "Xiao et al. 2025, arXiv 2502.00883 and its code",
    ),
    # Known from the abstract only (w = exp(r / λ)): whether the paper normalises its weights could not be seen. They
    # are not normalised here, and r is the record's own "reward", never a model's.
    "reward_weighted_sft": Preset(
        "Reward-weighted SFT",
        {**_NLL, "reward_temperature": 1.0},
        "−exp(r / λ) log π_i, r observed",
        "Chidambaram et al. 2026, arXiv 2603.10279",
    ),
}


def build_objective(name: str, **overrides: Any) -> Objective:
    """The preset `name` with overrides (None means: keep the preset's value).

    Raises ConfigError for an unknown name (the nearest is named), an unknown part, or a value out of range.

    >>> build_objective("softmax_dpo_sirius", beta=0.5).parts()
    {'reward': 'dpo', 'link': 'logistic', 'comparison': 'softmax', 'anchor': 'reference'}
    """
    if name not in LOSSES:
        near = get_close_matches(name, LOSSES, n=1)
        hint = f", did you mean '{near[0]}'?" if near else "."
        raise ConfigError(f"unknown loss '{name}'{hint} Known: {', '.join(LOSSES)}")
    known = {f.name for f in fields(Objective)}
    unknown = [key for key in overrides if key not in known]
    if unknown:
        raise ConfigError(f"unknown loss option '{unknown[0]}': choose from {', '.join(sorted(known))}")
    given = {key: value for key, value in overrides.items() if value is not None}
    return replace(Objective(), **{**LOSSES[name].options, **given})
