"""What an output is worth: predictions on disk and metrics. No model code here, and no torch."""
