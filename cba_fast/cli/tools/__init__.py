"""Commands for data sets, weights and this machine."""
