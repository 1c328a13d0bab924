"""The table of results, one line per prompt."""

from __future__ import annotations

from typing import Any

import qt
from slicer.i18n import tr as _

from MedCLIPSAMPanel import wording

_SWATCH = 12  # pixels
_PROMPT_WIDTH = 84  # at least; narrower panels scroll
_ROWS = 8  # that are shown without scrolling
_DECISIONS = {"accepted": ("✓", wording.GOOD), "rejected": ("✗", wording.BAD)}


def _columns() -> list[tuple[str, str]]:
    """Return header and tooltip of each column."""
    return [
        (_("Prompt"), _("What was asked for, and the segment's colour")),
        ("", _("Accepted or rejected")),
        (_("Size"), _("Volume of the mask, or its area on a single slice")),
        (_("Pres."), _("Presence: how sure the engine is that the target is there at all")),
        (_("Conf."), _("Confidence: mean saliency of the best part of the coarse mask")),
        (_("Sal."), _("Mean saliency inside the mask")),
        (_("Entr."), _("Mean entropy inside the mask, in nats (0 to 0.69): how uncertain the outline is")),
        (_("Time"), _("Computing time")),
    ]


class ResultsTable:
    """Fills ``ui.resultsTable``."""

    def __init__(self, table: Any):
        self.table = table
        columns = _columns()
        table.columnCount = len(columns)
        table.setHorizontalHeaderLabels([header for header, _tooltip in columns])
        for number, (_header, tooltip) in enumerate(columns):
            table.horizontalHeaderItem(number).setToolTip(tooltip)
        header = table.horizontalHeader()
        header.setHighlightSections(False)
        header.setMinimumSectionSize(18)
        for number in range(1, len(columns)):
            header.setSectionResizeMode(number, qt.QHeaderView.ResizeToContents)
        table.verticalHeader().setVisible(False)
        self.fit()

    def show(self, rows: list[Any], segmentation: Any, chosen: str) -> None:
        """Show the rows and choose the line of a prompt, or the first one."""
        self.table.rowCount = len(rows)
        for number, row in enumerate(rows):
            self._fill(number, row, segmentation)
        self.table.resizeRowsToContents()
        self.fit()
        if rows:
            prompts = [row.prompt for row in rows]
            self.table.selectRow(prompts.index(chosen) if chosen in prompts else 0)

    @property
    def chosen(self) -> int:
        """Number of the chosen line; -1 if there is none."""
        return self.table.currentRow() if self.table.rowCount else -1

    def fit(self) -> None:
        """Give the prompts the width that is left, and the table the height of its rows."""
        table = self.table
        others = sum(table.columnWidth(column) for column in range(1, table.columnCount))
        narrow = table.viewport().width - others < _PROMPT_WIDTH
        header = table.horizontalHeader()
        header.setSectionResizeMode(0, qt.QHeaderView.Interactive if narrow else qt.QHeaderView.Stretch)
        if narrow:
            table.setColumnWidth(0, _PROMPT_WIDTH)
        rows = min(max(table.rowCount, 1), _ROWS)
        row_height = table.rowHeight(0) if table.rowCount else table.verticalHeader().defaultSectionSize
        height = header.height + rows * row_height + 2 * table.frameWidth
        if narrow:
            height += table.horizontalScrollBar().sizeHint.height()
        if table.minimumHeight != height or table.maximumHeight != height:
            table.setFixedHeight(height)

    def _fill(self, number: int, row: Any, segmentation: Any) -> None:
        decision, decision_colour = _DECISIONS.get(row.decision, ("", None))
        cells = [
            (row.prompt, None),
            (decision, decision_colour),
            (wording.size(row.size, row.unit), None),
            (wording.score(row.presence), wording.presenceColour(row.presence, row.presence_threshold)),
            (wording.score(row.confidence), None),
            (wording.score(row.mean_saliency), None),
            (wording.score(row.mean_entropy), None),
            (wording.seconds(row.seconds), None),
        ]
        for column, (text, colour) in enumerate(cells):
            item = qt.QTableWidgetItem(text)
            item.setToolTip(row.prompt if column == 0 else text)
            if column:
                item.setTextAlignment(qt.Qt.AlignRight | qt.Qt.AlignVCenter)
            if colour is not None:
                item.setForeground(qt.QBrush(qt.QColor(colour)))
            if column == 0:
                item.setIcon(_swatch(segmentation, row.mask_segment_id))
            self.table.setItem(number, column, item)


def _swatch(segmentation: Any, segment_id: str | None) -> Any:
    """Return a square of the segment's colour."""
    segment = segmentation.GetSegmentation().GetSegment(segment_id) if segment_id else None
    picture = qt.QPixmap(_SWATCH, _SWATCH)
    picture.fill(qt.QColor("gray") if segment is None else qt.QColor(*(round(255 * c) for c in segment.GetColor())))
    return qt.QIcon(picture)
