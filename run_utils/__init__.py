"""The frame of every script: arguments, the launch, records of origin, checkpoints, progress."""
