"""Slates → text → token ids. No torch here."""
