"""How the panel looks: one style and font everywhere, and pictures of it."""

from __future__ import annotations

from pathlib import Path

from PySide6 import QtCore, QtGui, QtWidgets

FONT = "DejaVu Sans"


def apply(app: QtWidgets.QApplication) -> None:
    """Fusion style and DejaVu Sans, from the system or from matplotlib's data."""
    if FONT not in QtGui.QFontDatabase.families():
        try:
            import matplotlib
        except ImportError:
            pass  # Qt's own fallback is then used
        else:
            folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
            for name in ("DejaVuSans.ttf", "DejaVuSans-Bold.ttf", "DejaVuSans-Oblique.ttf"):
                QtGui.QFontDatabase.addApplicationFont(str(folder / name))
    QtWidgets.QApplication.setStyle("Fusion")
    QtWidgets.QApplication.setFont(QtGui.QFont(FONT, 9))


def save_picture(widget: QtWidgets.QWidget, path: Path, width: int = 460) -> QtCore.QSize:
    """Save a picture of a widget at its natural height, as a module panel of ``width`` points shows it.

    The scale is that of the process: start it with QT_SCALE_FACTOR=1.5 for 150 %.

    Returns:
        Size of the picture in pixels.

    Raises:
        OSError: the picture could not be written.
    """
    kind = QtWidgets.QWidget
    kind.show(widget)
    for _ in range(3):  # layouts, then what they show or hide, settle
        kind.resize(widget, width, max(kind.sizeHint(widget).height(), kind.minimumSizeHint(widget).height()))
        QtWidgets.QApplication.processEvents()
        layout = kind.layout(widget)
        if layout is not None and layout.hasHeightForWidth():
            kind.resize(widget, width, layout.totalHeightForWidth(width))
            QtWidgets.QApplication.processEvents()
    picture = kind.grab(widget)
    if not picture.save(str(path)):
        raise OSError(f"cannot write {path}")
    return picture.size()
