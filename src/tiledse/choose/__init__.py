"""Choose: calibration of strips, and the tiles that a budget buys."""
