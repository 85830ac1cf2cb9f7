"""How onnxruntime is told its threads, for the libraries that open a session by themselves."""

from __future__ import annotations

from typing import Any

import onnxruntime


def session_options(threads: int) -> Any:
    """Options of a session on so many threads; its default is every core it sees."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    return options
