"""Give every request its own app: pooled, isolated ASGI sandboxes."""

__version__ = "0.1.0"
