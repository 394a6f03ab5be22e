"""Commands that run whole studies over several models."""
