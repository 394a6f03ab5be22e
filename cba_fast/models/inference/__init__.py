"""What makes a network compute faster without changing what it computes."""
