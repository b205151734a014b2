"""Programs of the project itself: not installed, and not imported by the package."""
