# fish loads this file at the first Tab. The command itself has the completions.
physview completion fish 2>/dev/null | source
