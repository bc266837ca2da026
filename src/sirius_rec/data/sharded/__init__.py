"""Preparing a log that does not fit into memory. `prepare.py` tells the way; the other files are its chapters:
source, partition, shard, filters, parts, slates.
"""
