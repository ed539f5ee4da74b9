"""Tests of private modules."""
