"""Commands that measure effective receptive fields."""
