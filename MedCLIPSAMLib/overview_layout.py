"""How the overview is laid out: header with the legend, one block per prompt, footer. Lengths in inches."""

from __future__ import annotations

from MedCLIPSAMLib.overview_page import AMBER, FAINT, INK, RULE, Page, one_line
from MedCLIPSAMLib.overview_row import BOX, COARSE, MASK, TITLES, TRUTH, PanelRow, Row
from MedCLIPSAMLib.overview_strip import STRIP_HEIGHT, draw_strip

_MARGIN, _GAP = 0.42, 0.20
_PANEL_WIDTH, _PANEL_HEIGHT, _CELL_WIDTH = 2.85, 3.3, 2.1  # largest panel; narrowest cell
_CAPTION = 0.50


def compose(
    rows: list[Row],
    title: str,
    facts: str,
    window: tuple[float, float] | None,
    spacing: tuple[float, float] | None,
    notice: str,
) -> Page:
    """Return the page: header, one block per row, footer. The arguments are those of ``overview.write_overview``."""
    height, width = rows[0].image.shape[:2]
    ratio = height / width * (spacing[0] / spacing[1] if spacing else 1)
    panel = min(_PANEL_WIDTH, _PANEL_HEIGHT / ratio), min(_PANEL_HEIGHT, _PANEL_WIDTH * ratio)
    panel = max(panel[0], 0.02), max(panel[1], 0.02)
    cell = max(panel[0], _CELL_WIDTH)
    page_width = 2 * _MARGIN + 5 * cell + 4 * _GAP
    inner = page_width - 2 * _MARGIN
    measuring = Page(page_width, 1)
    name = measuring.fit(title or "MedCLIPSAM", 17, inner, 1, "bold")
    facts_lines = measuring.fit(facts, 9.5, inner, 2)
    headings = [measuring.fit(row.heading, 13.5, inner, 2, "bold") or ["(empty prompt)"] for row in rows]
    notes = [measuring.fit(" ".join(map(one_line, row.warnings)), 8.5, inner - 0.16, 2) for row in rows]
    header = 0.36 + 0.36 + 0.19 * len(facts_lines) + 0.34
    tops = [0.26 * len(head) + 0.27 + 0.17 * len(note) + 0.30 for head, note in zip(headings, notes, strict=True)]
    blocks = [
        top + panel[1] + _CAPTION + (STRIP_HEIGHT if row.strip else 0) + 0.24
        for top, row in zip(tops, rows, strict=True)
    ]
    page = Page(page_width, header + sum(blocks) + 0.42)
    y = 0.36
    page.text(_MARGIN, y, name[0], 17, weight="bold")
    for number, line in enumerate(facts_lines):
        page.text(_MARGIN, y + 0.36 + 0.19 * number, line, 9.5, color=FAINT)
    _legend(page, header - 0.27, any(row.truth is not None for row in rows))
    y = header
    for row, head, note, top, block in zip(rows, headings, notes, tops, blocks, strict=True):
        page.rectangle(_MARGIN, y, inner, 0.012, fc=RULE)
        _row_text(page, row, head, note, y + 0.13, inner)
        for column, caption in enumerate(TITLES):
            middle = _MARGIN + column * (cell + _GAP) + cell / 2
            page.text(middle, y + top - 0.015, caption, 9, ha="center", va="bottom", weight="bold", color=INK)
        PanelRow(page, row, window, spacing, panel).draw(_MARGIN, y + top + 0.04, cell, _GAP)
        if row.strip:
            draw_strip(page, row.strip, _MARGIN, y + top + 0.04 + panel[1] + _CAPTION, inner)
        y += block
    page.rectangle(_MARGIN, page.height - 0.36, inner, 0.012, fc=RULE)
    footer = page.fit(notice, 8.5, inner - 1.3)
    page.text(_MARGIN, page.height - 0.26, footer[0] if footer else "", 8.5, color=FAINT)
    page.text(_MARGIN + inner, page.height - 0.26, "MedCLIPSAM", 8.5, ha="right", color=FAINT)
    return page


def _row_text(page: Page, row: Row, heading: list[str], note: list[str], y: float, inner: float) -> None:
    for line in heading:
        page.text(_MARGIN, y, line, 13.5, weight="bold")
        y += 0.26
    page.rectangle(_MARGIN + 0.01, y + 0.035, 0.09, 0.09, fc=row.presence_colour)
    score = row.presence
    page.text(_MARGIN + 0.16, y, score, 9, color=row.presence_colour, weight="bold")
    start = 0.16 + page.measure(score, 9, "bold") + 0.12
    details = page.fit("· " + " · ".join(row.details), 9, inner - start) if row.details else []
    for line in details:
        page.text(_MARGIN + start, y, line, 9, color=FAINT)
    y += 0.20
    for number, line in enumerate(note):
        page.text(_MARGIN, y, "!" if number == 0 else "", 8.5, color=AMBER, weight="bold")
        page.text(_MARGIN + 0.16, y, line, 8.5, color=AMBER)
        y += 0.17


def _legend(page: Page, y: float, truth: bool) -> None:
    """Draw the meaning of the colours, from the left."""
    x = _MARGIN
    entries = [(COARSE, "coarse mask", "fill"), (BOX, "box with confidence", "box"), (MASK, "mask", "fill")]
    if truth:
        entries.append((TRUTH, "truth", "dash"))
    for colour, label, kind in entries:
        if kind == "dash":
            for part in (0.0, 0.1):
                page.rectangle(x + part, y + 0.045, 0.07, 0.022, fc=TRUTH)
        elif kind == "box":
            page.rectangle(x + 0.02, y + 0.01, 0.14, 0.10, fc="none", ec=BOX, lw=1.6)
        else:
            page.rectangle(x, y, 0.17, 0.12, fc=colour, ec=colour, alpha=0.85)
        page.text(x + 0.24, y - 0.015, label, 8.5, color=FAINT)
        x += 0.24 + page.measure(label, 8.5) + 0.26
