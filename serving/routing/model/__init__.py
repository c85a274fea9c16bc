"""The shipped router model."""
