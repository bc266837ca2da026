"""HTTP over a ranker: a queue that becomes batches, limits, keys, metrics, and a page. Knows no run and no torch.

options: every limit with its default. models: what is served. engine: the thread that answers. bodies: what clients
send and get. guard: what stands before every request. app: the routes. server: sockets, signals, workers.
"""
