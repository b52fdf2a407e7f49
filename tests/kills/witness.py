"""Run a verb and count the images that it reads in the file that SIGN names: a sign that it is surely at work."""

import os
import sys
from pathlib import Path

from PIL import Image

from tiledse.__main__ import main

_open = Image.open


def counted(*arguments: object, **more: object) -> Image.Image:
    with Path(os.environ["SIGN"]).open("ab") as file:
        file.write(b".")
    return _open(*arguments, **more)  # type: ignore[arg-type]


if __name__ == "__main__":
    Image.open = counted
    sys.exit(main())
