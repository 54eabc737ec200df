"""Searches over whole workflows with Optuna, per hardware target."""
