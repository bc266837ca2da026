"""`parts`: rewards, links, comparisons, anchors. `losses`: the objectives composed of them. `presets`:
those that have names. `evidence`: what a step reveals. `identity`: what a training was made with.

Pure torch functions. Tensors are [B, C]: B examples, C scored candidates; column 0 is the positive. Masks say which
columns are real and which are this step's sampled negatives.
"""
