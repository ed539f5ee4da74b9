"""Tests of `wrap()` and what it does with a request."""
