"""Other people's compilers and runtimes judge the forms that tiledse writes: ``make judges``."""
