"""Commands that make heatmaps and score them."""
