"""Blind probes on any set of candidate slates: how much of a model's HR@1 needs no user and no model. No torch."""
