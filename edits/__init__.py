"""The built-in editing methods, one file a family: each is an example for one of your own."""
