"""The commands that score stored maps."""
