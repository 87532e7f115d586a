"""What patches did in a run, and what they do at a size: for people to look at."""
