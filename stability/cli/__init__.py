"""The command line: names become objects, and what they measure becomes text."""
