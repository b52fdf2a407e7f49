"""How much context a block needs: correlation, sensitivity, sweeps."""
