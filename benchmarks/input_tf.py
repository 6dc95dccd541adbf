"""A tf.data pipeline after big_vision's preprocessing, for `input_pipeline.py`; needs only tensorflow.

Fused partial decoding (`decode_and_crop_jpeg`) of an inception crop, bilinear resize, flip, and RandAugment
in TensorFlow ops; only the operations that are drawn run.
"""

import os

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"

import input_turns
import tensorflow as tf

SIZE, MAGNITUDE, BATCH = 224, 1.5, 50
ENHANCE = 1.8 * MAGNITUDE + 0.1


def crop(data):
    """Inception crop, decoding no more than it needs."""
    begin, size, _ = tf.image.sample_distorted_bounding_box(
        tf.image.extract_jpeg_shape(data),
        tf.zeros([0, 0, 4], tf.float32),
        area_range=(0.05, 1.0),
        aspect_ratio_range=(0.75, 1.33),
        min_object_covered=0,
        use_image_if_no_bounding_boxes=True,
        max_attempts=100,
    )
    window = tf.concat([begin[:2], size[:2]], axis=0)
    image = tf.image.decode_and_crop_jpeg(data, window, channels=3)
    return tf.cast(tf.clip_by_value(tf.image.resize(image, (SIZE, SIZE)), 0, 255), tf.uint8)


def blend(degenerate, image, factor):
    """degenerate + factor * (image - degenerate), clipped."""
    degenerate, image = tf.cast(degenerate, tf.float32), tf.cast(image, tf.float32)
    return tf.cast(tf.clip_by_value(degenerate + factor * (image - degenerate), 0, 255), tf.uint8)


def projective(image, *matrix):
    """Nearest-neighbour map by the rows of a 3x3 matrix (8 numbers), grey outside."""
    transforms = tf.convert_to_tensor([[*matrix, 0.0, 0.0]], tf.float32)
    # tensorflow_addons' wrapping, which big_vision used: a channel of ones marks what is covered.
    marked = tf.concat([image, tf.ones([SIZE, SIZE, 1], tf.uint8)], axis=2)[None]
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=marked,
        transforms=transforms,
        output_shape=[SIZE, SIZE],
        interpolation="NEAREST",
        fill_mode="CONSTANT",
        fill_value=0.0,
    )[0]
    return tf.where(moved[:, :, 3:] == 0, tf.constant(128, tf.uint8), moved[:, :, :3])


def rotate(image, degrees):
    """About the centre."""
    angle, middle = degrees * 3.14159265 / 180, (SIZE - 1) / 2
    cos, sin = tf.cos(angle), tf.sin(angle)
    dx, dy = middle - (cos * middle - sin * middle), middle - (sin * middle + cos * middle)
    return projective(image, cos, -sin, dx, sin, cos, dy)


def autocontrast(image):
    """Stretches each channel to 0..255."""

    def channel(x):
        low, high = tf.cast(tf.reduce_min(x), tf.float32), tf.cast(tf.reduce_max(x), tf.float32)
        scale = 255 / (high - low)
        stretched = tf.clip_by_value(tf.cast(x, tf.float32) * scale - low * scale, 0, 255)
        return tf.cond(high > low, lambda: tf.cast(stretched, tf.uint8), lambda: x)

    return tf.stack([channel(image[:, :, c]) for c in range(3)], 2)


def equalize(image):
    """PIL's histogram equalisation of each channel."""

    def channel(x):
        x = tf.cast(x, tf.int32)
        histogram = tf.histogram_fixed_width(x, [0, 255], nbins=256)
        nonzero = tf.gather(histogram, tf.where(histogram != 0))
        step = (tf.reduce_sum(nonzero) - tf.reshape(nonzero, [-1])[-1]) // 255
        table = (tf.cumsum(histogram) + step // 2) // tf.maximum(step, 1)
        table = tf.clip_by_value(tf.concat([[0], table[:-1]], 0), 0, 255)
        return tf.cast(tf.cond(step == 0, lambda: x, lambda: tf.gather(table, x)), tf.uint8)

    return tf.stack([channel(image[:, :, c]) for c in range(3)], 2)


def sharpness(image):
    """Blends with a 3x3 blur whose border is untouched."""
    kernel = tf.constant([[1, 1, 1], [1, 5, 1], [1, 1, 1]], tf.float32, shape=[3, 3, 1, 1]) / 13.0
    x = tf.cast(image, tf.float32)[None]
    blur = tf.nn.depthwise_conv2d(x, tf.tile(kernel, [1, 1, 3, 1]), [1, 1, 1, 1], "VALID")[0]
    blur = tf.cast(tf.clip_by_value(blur, 0, 255), tf.uint8)
    inside = tf.pad(tf.ones_like(blur), [[1, 1], [1, 1], [0, 0]])
    return blend(tf.where(inside == 1, tf.pad(blur, [[1, 1], [1, 1], [0, 0]]), image), image, ENHANCE)


def cutout(image):
    """Greys a square out."""
    half = int(40 * MAGNITUDE)
    y, x = (tf.random.uniform([], 0, SIZE, tf.int32) for _ in range(2))
    rows, columns = tf.abs(tf.range(SIZE) - y) < half, tf.abs(tf.range(SIZE) - x) < half
    hidden = tf.logical_and(rows[:, None], columns[None, :])[..., None]
    return tf.where(hidden, tf.constant(128, tf.uint8), image)


def solarize_add(image):
    """Adds to the dark pixels."""
    added = tf.cast(tf.clip_by_value(tf.cast(image, tf.int32) + int(110 * MAGNITUDE), 0, 255), tf.uint8)
    return tf.where(image < 128, added, image)


def operations(image):
    """The sixteen of AugReg, each to be called if drawn."""
    sign = tf.where(tf.random.uniform([]) < 0.5, -1.0, 1.0)
    grey = lambda: tf.image.grayscale_to_rgb(tf.image.rgb_to_grayscale(image))
    shear, shift, bits = sign * 0.3 * MAGNITUDE, sign * 100 * MAGNITUDE, 8 - int(4 * MAGNITUDE)
    threshold = int(256 * MAGNITUDE) % 256
    return [
        lambda: autocontrast(image),
        lambda: equalize(image),
        lambda: 255 - image,
        lambda: rotate(image, sign * 30 * MAGNITUDE),
        lambda: tf.bitwise.left_shift(tf.bitwise.right_shift(image, bits), bits),
        lambda: tf.where(image < threshold, image, 255 - image),
        lambda: blend(grey(), image, ENHANCE),
        lambda: blend(tf.fill([SIZE, SIZE, 3], 196), image, ENHANCE),
        lambda: blend(tf.zeros_like(image), image, ENHANCE),
        lambda: sharpness(image),
        lambda: projective(image, 1.0, shear, 0.0, 0.0, 1.0, 0.0),
        lambda: projective(image, 1.0, 0.0, 0.0, shear, 1.0, 0.0),
        lambda: projective(image, 1.0, 0.0, shift, 0.0, 1.0, 0.0),
        lambda: projective(image, 1.0, 0.0, 0.0, 0.0, 1.0, shift),
        lambda: cutout(image),
        lambda: solarize_add(image),
    ]


def main() -> None:
    """Answers `input_pipeline.Pipeline`."""
    data, randaug = input_turns.files(), input_turns.randaug()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)

    def preprocess(encoded):
        image = tf.ensure_shape(tf.image.random_flip_left_right(crop(encoded)), [SIZE, SIZE, 3])
        for _ in range(2 if randaug else 0):
            drawn = tf.random.uniform([], 0, 16, tf.int32)
            image = tf.ensure_shape(tf.switch_case(drawn, operations(image)), [SIZE, SIZE, 3])
        return image

    options = tf.data.Options()
    options.threading.private_threadpool_size = 1
    dataset = tf.data.Dataset.from_tensor_slices(data).shuffle(len(data)).repeat()
    batches = iter(dataset.map(preprocess).batch(BATCH).with_options(options))

    def make(images: int) -> int:
        for _ in range(images // BATCH):
            assert next(batches).shape == (BATCH, SIZE, SIZE, 3)
        return images

    input_turns.serve(make)


if __name__ == "__main__":
    main()
