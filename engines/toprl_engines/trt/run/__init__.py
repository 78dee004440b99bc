"""Running a bundle of plans on a GPU."""
