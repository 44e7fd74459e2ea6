"""Fixtures that several packages share."""

from tests.slm.conftest import llama_folder, opt_folder

__all__ = ["llama_folder", "opt_folder"]
