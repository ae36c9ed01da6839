"""A Hugging Face model seen through one window, whatever its architecture."""
