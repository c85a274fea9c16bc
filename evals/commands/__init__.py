"""The subcommands that evaluate: each module is one, found through its entry point."""
