"""The commands that measure effective receptive fields on the images of a data set."""
