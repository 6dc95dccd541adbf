"""A torchvision-style pipeline on PIL images, for `input_pipeline.py`.

The operations are those of torchvision's `RandomResizedCrop` and `RandomHorizontalFlip`, and RandAugment
with the sixteen operations of AugReg. They make torchvision's PIL calls without needing torchvision.
"""

import io
import math
import random

import input_turns
import numpy as np
from PIL import Image, ImageEnhance, ImageOps

SIZE, MAGNITUDE = 224, 1.5
GREY = (128, 128, 128)


def sign() -> int:
    """1 or -1."""
    return random.choice((-1, 1))


def affine(image: Image.Image, *matrix: float) -> Image.Image:
    """Maps pixels by the rows of a 2x3 matrix, nearest neighbour, grey outside."""
    return image.transform(
        image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=GREY
    )


def cutout(image: Image.Image) -> Image.Image:
    """Greys a square out."""
    half = int(40 * MAGNITUDE)
    x, y = random.randrange(image.width), random.randrange(image.height)
    image = image.copy()
    image.paste(GREY, (max(0, x - half), max(0, y - half), min(SIZE, x + half), min(SIZE, y + half)))
    return image


ADDED = [min(255, i + int(110 * MAGNITUDE)) if i < 128 else i for i in range(256)] * 3
ENHANCE = 1.8 * MAGNITUDE + 0.1
OPERATIONS = (
    ImageOps.autocontrast,
    ImageOps.equalize,
    ImageOps.invert,
    lambda i: i.rotate(sign() * 30 * MAGNITUDE, Image.Resampling.NEAREST, fillcolor=GREY),
    lambda i: ImageOps.posterize(i, int(4 * MAGNITUDE)),
    lambda i: ImageOps.solarize(i, int(256 * MAGNITUDE) % 256),
    lambda i: ImageEnhance.Color(i).enhance(ENHANCE),
    lambda i: ImageEnhance.Contrast(i).enhance(ENHANCE),
    lambda i: ImageEnhance.Brightness(i).enhance(ENHANCE),
    lambda i: ImageEnhance.Sharpness(i).enhance(ENHANCE),
    lambda i: affine(i, 1, sign() * 0.3 * MAGNITUDE, 0, 0, 1, 0),
    lambda i: affine(i, 1, 0, 0, sign() * 0.3 * MAGNITUDE, 1, 0),
    lambda i: affine(i, 1, 0, sign() * 100 * MAGNITUDE, 0, 1, 0),
    lambda i: affine(i, 1, 0, 0, 0, 1, sign() * 100 * MAGNITUDE),
    cutout,
    lambda i: i.point(ADDED),
)


def random_resized_crop(image: Image.Image) -> Image.Image:
    """Area 5-100 %, aspect 3/4 to 4/3, ten attempts, then the centre: torchvision's algorithm."""
    width, height = image.size
    for _ in range(10):
        area = width * height * random.uniform(0.05, 1)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = random.randint(0, width - w), random.randint(0, height - h)
            break
    else:
        w = h = min(width, height)
        left, top = (width - w) // 2, (height - h) // 2
    return image.crop((left, top, left + w, top + h)).resize((SIZE, SIZE), Image.Resampling.BILINEAR)


def main() -> None:
    """Answers `input_pipeline.Pipeline`."""
    data, randaug = input_turns.files(), input_turns.randaug()
    random.seed(0)

    def one() -> np.ndarray:
        image = random_resized_crop(Image.open(io.BytesIO(random.choice(data))).convert("RGB"))
        if random.random() < 0.5:
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        for operation in random.choices(OPERATIONS, k=2) if randaug else ():
            image = operation(image)
        return np.asarray(image)

    def make(images: int) -> int:
        assert np.stack([one() for _ in range(images)]).shape == (images, SIZE, SIZE, 3)
        return images

    input_turns.serve(make)


if __name__ == "__main__":
    main()
