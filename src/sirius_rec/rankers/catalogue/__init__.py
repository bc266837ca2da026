"""The whole catalogue ranked by a language model: its titles as a trie, the exact top K, constrained generation."""
