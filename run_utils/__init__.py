"""What a script is, whatever it does: arguments, the launch, where results come from, checkpoints, progress."""
