"""What users call: the command line and the entry points of the bundles."""
