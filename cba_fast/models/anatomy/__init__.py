"""Takes a look into any network: its parts, its layers, and the layout of its feature maps."""
