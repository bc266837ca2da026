"""log π(y|x) for every candidate y of a prompt x: `packed`, as a tree, is the product, `naive` its oracle.

A candidate's log-probability is in nats and sums over its tokens including the end of sequence.
"""
