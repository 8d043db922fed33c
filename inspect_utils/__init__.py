"""A look at the rows before a training: findings, lengths, verdict. Reads all other rooms."""
