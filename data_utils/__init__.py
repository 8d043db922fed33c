"""What a row is on its way to the model and back: sources, rows, prompt, batches, calls. No model code here."""
