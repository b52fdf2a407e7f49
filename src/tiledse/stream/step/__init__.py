"""Steps: a network that takes R rows of an image at a time and hands its state on, as a file for any runtime."""
