"""Checks of this schema: before an upgrade, and after it."""
