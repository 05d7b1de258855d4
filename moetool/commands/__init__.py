"""One file per subcommand: options to facts to trace to statistics to Report."""
