"""Implicit rewards, comparisons, anchors and the losses composed from them: pure torch functions.

Tensors are [B, C]: B examples, C scored candidates; column 0 is the positive. Masks say which columns are real and
which are this step's sampled negatives.
"""
