"""Reading checkpoints without executing them, converting, publishing."""
