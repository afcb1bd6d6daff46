"""Keeps the toolchain's console output out of a stage's log, and its warnings at hand.

llm-compressor logs one line a module and draws a bar for each loop; at 11,520 expert matrices nothing else
could be read.
"""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator

from llmcompressor.logger import LoggerConfig, configure_logger, logger


@contextlib.contextmanager
def quiet_toolchain() -> Iterator[list[str]]:
    """Log errors only, and swallow progress bars, while the block runs. A failure's own traceback is not
    touched.

    Yields the list that collects llm-compressor's warnings, each text once.
    """
    configure_logger(LoggerConfig(console_log_level="ERROR", metrics_disabled=True))
    # AutoRound logs on its own, one line a layer and the layer's whole structure.
    logging.getLogger("autoround").setLevel(logging.ERROR)
    warnings: list[str] = []

    def collect(message: str) -> None:
        text = message.strip()
        if text not in warnings:
            warnings.append(text)

    sink = logger.add(collect, level="WARNING", format="{message}", filter=lambda record: record["level"].no == 30)
    try:
        with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
            yield warnings
    finally:
        logger.remove(sink)
