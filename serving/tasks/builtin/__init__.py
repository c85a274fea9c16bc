"""The task files that come with the project."""
