"""Exports a policy as one file: raw observation in, action out."""

from xcfast.export.check import ExportError
from xcfast.export.command import main
from xcfast.export.export import Exported, export_policy

__all__ = ["ExportError", "Exported", "export_policy", "main"]
