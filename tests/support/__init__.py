"""Small models and batches that several test modules share."""
