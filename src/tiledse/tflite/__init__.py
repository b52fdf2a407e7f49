"""TensorFlow Lite networks: find their SE blocks, give them tiles, verify the result in LiteRT."""
