"""A package, so that what registers host probes is one module for all importers."""
