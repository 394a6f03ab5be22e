"""The command ``erf-intervene``: change the ERF of a trained network, with controls."""
