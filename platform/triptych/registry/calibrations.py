"""What plans predicted of stages beside what these came to: plain records, by which later predictions are corrected."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import select

from triptych.registry.database import Database
from triptych.registry.tables import CalibrationRow

LATEST = 1000
"""Records that are read: what machines and code did long ago says little."""


def add_calibration(database: Database, record: Mapping[str, Any]) -> None:
    """Keep the record of a stage that ended."""
    with database.write() as session:
        session.add(CalibrationRow(record=dict(record), created_at=datetime.now(UTC)))


def calibrations(database: Database) -> list[dict[str, Any]]:
    """The newest records, newest first."""
    with database.read() as session:
        newest = select(CalibrationRow).order_by(CalibrationRow.id.desc()).limit(LATEST)
        return [dict(row.record) for row in session.scalars(newest)]
