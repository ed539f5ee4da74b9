"""How a private app is made."""
