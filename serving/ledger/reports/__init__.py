"""What was spent, wasted and saved, and whether the books agree with themselves."""
