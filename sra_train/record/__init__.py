"""What a run writes down and reads back: checkpoints, metrics, the finished model and the words about it."""
