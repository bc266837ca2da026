"""The story of a run: prepare → pretrain (tiny only) → sft → reference → align → evaluate → diagnose → report.

Recipes are where configuration meets the library: they read config objects and call plain functions.
"""
