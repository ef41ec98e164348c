"""Adapters to trainers: thin, and on fastreward's public interface only."""
