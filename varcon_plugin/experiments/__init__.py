"""Grids of recipes x seeds: declared, run one cell at a time, summarised.

``tools/run_experiment.py`` is the command.
"""
