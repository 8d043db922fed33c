"""Predictions on disk, their metrics and the report. No model code, no torch."""
