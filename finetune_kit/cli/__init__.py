"""The command line: one file per subcommand; nothing here imports torch before a command needs it."""
