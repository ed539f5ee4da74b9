"""WSGI apps, wrapped."""
