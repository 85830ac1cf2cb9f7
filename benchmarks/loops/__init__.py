"""Training loops side by side. Torch and the training core are loaded here: only child processes import this."""
