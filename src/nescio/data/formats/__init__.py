"""One file for each form in which images come."""
