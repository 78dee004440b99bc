"""The one attention op of every exported graph."""
