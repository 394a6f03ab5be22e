"""Makes data sets: CUB_200_2011 from its archive, and the generated animals."""
