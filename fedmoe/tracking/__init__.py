"""Where the metrics of each round go: rounds.csv, W&B, TensorBoard."""
