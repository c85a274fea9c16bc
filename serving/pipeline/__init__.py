"""The request path: its steps, and the module that puts them in order."""
