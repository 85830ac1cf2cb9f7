"""Bundles timed beside what one would use instead, in turn on the same questions; each side in a child process."""
