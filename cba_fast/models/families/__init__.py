"""The networks of the study: what they are built of, and the keys of their checkpoints."""
