"""Scores of maps against boxes and masks, and how sure these are."""
