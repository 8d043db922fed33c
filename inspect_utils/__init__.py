"""A look at the rows before a training: findings, lengths, and the verdict. Reads all other rooms."""
