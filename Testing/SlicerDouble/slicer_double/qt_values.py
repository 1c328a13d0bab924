"""Names of Qt that the record of the application does not hold, but PythonQt wraps."""

from __future__ import annotations

# Plain values and helpers of Qt that PythonQt wraps as well; the record holds widgets and objects only.
_VALUES = """
Qt QApplication QBrush QByteArray QColor QCoreApplication QCursor QDateTime QDesktopServices QDir QEvent
QEventLoop QFile QFileInfo QFont QFontMetrics QIcon QImage QIntValidator QItemSelectionModel QKeyEvent
QKeySequence QListWidgetItem QLocale QModelIndex QPainter QPalette QPen QPixmap QPoint QPointF QRect QRectF
QRegularExpression QScreen QSize QSizePolicy QSpacerItem QStandardPaths QStyle QSysInfo QTableWidgetItem
QTableWidgetSelectionRange QTextCursor QUrl QAbstractItemView QToolTip QWidgetAction QAbstractSpinBox
"""
VALUES = frozenset(_VALUES.split())
