"""log π(y|x) for every candidate y of a prompt x: `naive` is the oracle, `packed` the product.

A candidate's log-probability is in nats and sums over its tokens including the end of sequence.
"""
