"""Load generators and measurements: not part of the installed package. Begin with `python -m bench.load --help`."""
