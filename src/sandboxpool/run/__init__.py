"""Where a sandbox runs."""
