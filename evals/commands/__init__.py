"""The subcommands for evaluation: one module each, registered as an entry point."""
