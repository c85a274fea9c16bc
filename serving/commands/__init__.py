"""The subcommands of this package. One thin module each: parse, call, print."""
