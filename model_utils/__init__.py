"""The base model, its adapter, and how they run: loading, LoRA, the fast paths and their checks,
generation."""
