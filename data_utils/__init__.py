"""Rows, prompt, batches and scores: everything between a data set's file and a model, and back. No model code here."""
