"""Benchmarks: evidence, not part of the package. NOTES.md says how time is taken."""
