"""Tests of how private apps are made."""
