"""The edge runtime timed beside the usual stacks, and its memory, search and server; all in child processes."""
