"""Encoders: checkpoints, the protocol that back-ends follow, and the packed encoder."""
