"""The durable record: one row a decision, committed before the last byte of its answer."""

from router.ledger.row import DecisionRow
from router.ledger.store import Ledger, LedgerUnavailableError

__all__ = ["DecisionRow", "Ledger", "LedgerUnavailableError"]
