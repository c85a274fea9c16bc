"""What every request cost, by token class."""
