"""The path of the data: sources, rows, prompts, batches, calls. No model code."""
