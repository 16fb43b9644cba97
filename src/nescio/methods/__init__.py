"""Every method: stages of a detector, and ways to train."""
