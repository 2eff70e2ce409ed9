"""What users run: the logic behind the scripts in ``tools/``."""
