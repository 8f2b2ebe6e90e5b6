"""What fits a model to the labelled samples and scores others with it: one module per regime."""
