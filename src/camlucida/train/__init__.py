"""Training: a recipe, a loop that yields events, checkpoints that resume exactly."""
