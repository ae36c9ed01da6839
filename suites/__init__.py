"""The six criteria, a file each, readable as their definitions."""
