"""The doors to the ops: PyTorch reference, input checks, choice of the back-end."""
