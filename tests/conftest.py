"""Fixtures that several packages share."""

from tests.databases import ledger_url, postgres
from tests.slm.conftest import llama_folder, opt_folder

__all__ = ["ledger_url", "llama_folder", "opt_folder", "postgres"]
