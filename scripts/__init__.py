"""What keeps the project: not installed, run from the repository's root by the Makefile."""
