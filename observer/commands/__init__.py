"""The subcommands of `observer` by noun; cli.py puts them together."""
