"""Reward-hacking evidence from training curves. No torch."""
