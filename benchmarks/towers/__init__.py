"""Towers in torch, in sentence-transformers and in bundles, timed beside each other; each in a child process."""
