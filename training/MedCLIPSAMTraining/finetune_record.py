"""Numbers of a run for TensorBoard, where that is installed."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class Scalars:
    """Writes named numbers by step; does nothing without a folder or without TensorBoard."""

    def __init__(self, folder: Path | None, step: int):
        """Open the folder; what an interrupted run wrote after ``step`` is hidden."""
        self._writer: Any = None
        if folder is None:
            return
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.info("TensorBoard is not installed (pip install tensorboard); the numbers are in the CSV files.")
            return
        self._writer = SummaryWriter(str(folder), purge_step=step + 1)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Write the values of a step."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close."""
        if self._writer is not None:
            self._writer.close()
