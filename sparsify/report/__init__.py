"""What `convert` found, to look at: one HTML page, and one picture for the model card."""
