"""Arrays to numbers: what the curves and trials of a laboratory say."""
