"""What the SIRIUS paper prints, by table, row and column: targets of the harness, nothing that was measured here.

Values stand as they are printed. Data sets are named as sources are.
"""

from __future__ import annotations

from typing import Final

DATASETS: Final = {"lastfm": "LastFM", "goodreads": "Goodreads", "steam": "Steam"}
BACKBONE: Final = "Llama-2-7B"

# Table 1: HitRatio@1 and ValidRatio per data set.
TABLE_1: Final[dict[str, dict[str, tuple[float, float]]]] = {
    "GRU4Rec": {"lastfm": (0.2666, 1.0), "goodreads": (0.3867, 1.0), "steam": (0.4121, 1.0)},
    "Caser": {"lastfm": (0.2410, 1.0), "goodreads": (0.4174, 1.0), "steam": (0.4288, 1.0)},
    "SASRec": {"lastfm": (0.2492, 1.0), "goodreads": (0.3581, 1.0), "steam": (0.4037, 1.0)},
    "Llama2": {"lastfm": (0.0277, 0.3910), "goodreads": (0.0399, 0.6196), "steam": (0.0430, 0.5447)},
    "ChatRec": {"lastfm": (0.3770, 1.0), "goodreads": (0.3306, 1.0), "steam": (0.3626, 0.9798)},
    "MoRec": {"lastfm": (0.1652, 1.0), "goodreads": (0.2877, 1.0), "steam": (0.3911, 1.0)},
    "TALLRec": {"lastfm": (0.4180, 0.9836), "goodreads": (0.4983, 0.9573), "steam": (0.4637, 0.9840)},
    "LLaRA": {"lastfm": (0.4750, 0.9920), "goodreads": (0.5292, 0.9950), "steam": (0.4927, 0.9975)},
    "DPO": {"lastfm": (0.6393, 0.9984), "goodreads": (0.6462, 0.9950), "steam": (0.7333, 0.9966)},
    "SimPO": {"lastfm": (0.5928, 0.9804), "goodreads": (0.6130, 0.9452), "steam": (0.7234, 0.9907)},
    "SimPO w/o LN": {"lastfm": (0.6633, 0.9972), "goodreads": (0.7010, 0.9884), "steam": (0.8002, 0.9983)},
    "S-DPO": {"lastfm": (0.6493, 0.9984), "goodreads": (0.6744, 0.9950), "steam": (0.7712, 0.9992)},
    "DPO + SIRIUS": {"lastfm": (0.6593, 0.9984), "goodreads": (0.6744, 0.9900), "steam": (0.7757, 0.9983)},
    "SimPO w/o LN + SIRIUS": {"lastfm": (0.7315, 0.9984), "goodreads": (0.7857, 0.9900), "steam": (0.8550, 0.9983)},
}

# Table 2: sequences, items, interactions.
TABLE_2: Final = {
    "lastfm": (1_220, 4_606, 73_510),
    "goodreads": (6_031, 4_550, 220_100),
    "steam": (11_938, 3_581, 274_726),
}

# Table 3: HR@1, HR@5, NDCG@5, HR@10, NDCG@10 per data set. NDCG@1 is HR@1.
TABLE_3: Final[dict[str, dict[str, tuple[float, ...]]]] = {
    "GRU4Rec": {"lastfm": (0.2666, 0.3770, 0.2712, 0.5656, 0.2895),
                "goodreads": (0.3867, 0.5049, 0.3817, 0.6857, 0.4124),
                "steam": (0.4120, 0.5221, 0.4210, 0.7016, 0.4342)},
    "Caser": {"lastfm": (0.2410, 0.3525, 0.2671, 0.5000, 0.2902), "goodreads": (0.4174, 0.5307, 0.4384, 0.6672, 0.4574),
              "steam": (0.4288, 0.5363, 0.4526, 0.6869, 0.4772)},
    "SASRec": {"lastfm": (0.2492, 0.3443, 0.2705, 0.5082, 0.3216),
               "goodreads": (0.3581, 0.4448, 0.3717, 0.6254, 0.4383),
               "steam": (0.4037, 0.4896, 0.4341, 0.6687, 0.4745)},
    "DPO": {"lastfm": (0.6393, 0.8906, 0.7764, 0.9503, 0.7959), "goodreads": (0.6462, 0.8937, 0.7763, 0.9568, 0.7969),
            "steam": (0.7333, 0.8523, 0.7883, 0.9063, 0.8154)},
    "SimPO w/o LN": {"lastfm": (0.6633, 0.8926, 0.7850, 0.9555, 0.8056),
                     "goodreads": (0.7010, 0.9037, 0.7598, 0.9684, 0.7843),
                     "steam": (0.8002, 0.9460, 0.8979, 0.9772, 0.9079)},
    "S-DPO": {"lastfm": (0.6493, 0.8982, 0.7831, 0.9531, 0.8010),
              "goodreads": (0.6744, 0.9203, 0.8057, 0.9734, 0.8232),
              "steam": (0.7712, 0.8714, 0.8164, 0.9272, 0.8371)},
    "DPO + SIRIUS": {"lastfm": (0.6593, 0.8906, 0.7770, 0.9519, 0.7969),
                     "goodreads": (0.6744, 0.9070, 0.8062, 0.9734, 0.8281),
                     "steam": (0.7757, 0.8848, 0.8088, 0.9322, 0.8501)},
    "SimPO w/o LN + SIRIUS": {"lastfm": (0.7315, 0.9154, 0.8299, 0.9639, 0.8456),
                              "goodreads": (0.7857, 0.9468, 0.8793, 0.9801, 0.8904),
                              "steam": (0.8550, 0.9469, 0.9073, 0.9772, 0.9172)},
}  # fmt: skip

# Table 4, on LastFM with Llama-3-8B-Instruct, and Table 5, on LastFM with 100 candidates: the columns of Table 3.
TABLE_4: Final = {
    "SimPO w/o LN": (0.713, 0.879, 0.741, 0.962, 0.769),
    "SimPO w/o LN + SIRIUS": (0.764, 0.883, 0.756, 0.952, 0.778),
}
TABLE_5: Final = {
    "GRU4Rec": (0.0246, 0.0902, 0.0555, 0.1475, 0.0740),
    "Caser": (0.0410, 0.0902, 0.0637, 0.1393, 0.0800),
    "SASRec": (0.0204, 0.1066, 0.0566, 0.1639, 0.0742),
    "TALLRec": (0.0970, 0.3355, 0.2167, 0.5507, 0.2858),
    "SimPO w/o LN": (0.1800, 0.4293, 0.3085, 0.6212, 0.3700),
    "SimPO w/o LN + SIRIUS": (0.2665, 0.5323, 0.4038, 0.7030, 0.4586),
}

# Table 6, SimPO w/o LN + SIRIUS: HR@1 after epochs 0 to 5 by data set and anchor.
TABLE_6: Final[dict[str, dict[float, tuple[float, ...]]]] = {
    "lastfm": {
        0: (0.6239, 0.6589, 0.6966, 0.7242, 0.7302, 0.7315),
        1: (0.6239, 0.6581, 0.6950, 0.7174, 0.7311, 0.7263),
        10: (0.6239, 0.6637, 0.6938, 0.7226, 0.7323, 0.7255),
    },
    "goodreads": {
        0: (0.6102, 0.6827, 0.7259, 0.7541, 0.7740, 0.7857),
        1: (0.6102, 0.6910, 0.7342, 0.7674, 0.7791, 0.7890),
        10: (0.6102, 0.6844, 0.7508, 0.7542, 0.7741, 0.7807),
    },
    "steam": {
        0: (0.6878, 0.7715, 0.8111, 0.8465, 0.8550, 0.8465),
        1: (0.6878, 0.7864, 0.8196, 0.8272, 0.8575, 0.8541),
        10: (0.6878, 0.7993, 0.8465, 0.8651, 0.0658, 0.0000),
    },
}
