"""A package, so that what registers host probes is one module whoever imports it."""
