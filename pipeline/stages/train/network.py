"""Construction of the network, its augmentation and the optimizer from the configuration."""

from typing import Any

import keras

from pipeline.core.config import Model, Optimizer, Training
from pipeline.core.errors import PipelineError
from pipeline.core.targets import TARGET_KEY
from pipeline.stages.train.augmentation import check_augmentation
from pipeline.stages.train.components import build, check_layer, check_names, explained

WHITE = 255
LOGITS = "logits"
MEMBER = "member_"
RESERVED = {"images", "scale", "channel", LOGITS, "probabilities"}  # layer names


def build_network(model: Model, image_shape: tuple[int, ...], classes: int) -> keras.Model:
    """Build an untrained network from grayscale images (N, height, width) in 0…255 to probabilities (N, classes).

    The probabilities are float32, regardless of the network's precision. They are the mean over the ensemble members,
    each a model inside the network, and over the shifted views of test-time augmentation.
    Raises PipelineError if a layer rejects its arguments or does not fit the one before it, or if a test-time shift
    leaves nothing of an image.
    """
    if model.test_time_shift >= min(image_shape):
        size = "×".join(map(str, image_shape))
        raise PipelineError(
            f"model.test_time_shift: a shift by {model.test_time_shift} pixels leaves nothing of {size} images; "
            f"set at most {min(image_shape) - 1}"
        )
    images = keras.Input(image_shape, dtype="uint8", name="images")
    if model.members == 1 and not model.test_time_shift:
        logits = connect(model, images, classes)
    else:
        names = [f"{MEMBER}{number}" for number in range(1, model.members + 1)]
        members = [keras.Model(images, connect(model, images, classes), name=name) for name in names]
        views = shifted(images, model.test_time_shift)
        together = mix(keras.ops.stack([member(view) for member in members for view in views], axis=1))
        logits = keras.layers.Identity(dtype="float32", name=LOGITS)(together)
    probabilities = keras.layers.Softmax(dtype="float32", name="probabilities")(logits)
    return keras.Model(images, probabilities, name=model.name)


def connect(model: Model, images: keras.KerasTensor, classes: int) -> keras.KerasTensor:
    """Connect new layers to images, scaled to [0, 1] first, and return their logits (N, classes)."""
    tensor = keras.layers.Rescaling(1 / WHITE, name="scale")(images)
    tensor = keras.layers.Reshape((*images.shape[1:], 1), name="channel")(tensor)
    for key, layer in build_layers(model):
        with explained(f"{key}: does not fit the layer before it"):
            tensor = layer(tensor)
    _, *features = tensor.shape
    if len(features) != 1:
        raise PipelineError(
            f"model.layers: the output has shape {tuple(features)}; end with keras.layers.Flatten or global pooling"
        )
    with explained("model: its output does not fit the final Dense layer"):
        return keras.layers.Dense(classes, dtype="float32", name=LOGITS)(tensor)


def shifted(images: Any, pixels: int) -> list[Any]:
    """Views of images (N, height, width): unchanged, then shifted by `pixels` in eight directions unless it is 0."""
    if not pixels:
        return [images]
    _, height, width = images.shape
    padded = keras.ops.pad(images, ((0, 0), (pixels, pixels), (pixels, pixels)))
    starts = (pixels, 0, 2 * pixels)
    return [padded[:, y : y + height, x : x + width] for y in starts for x in starts]


def mix(logits: Any) -> Any:
    """Combine the logits of members (N, members, classes) into logits of their mean probabilities (N, classes)."""
    return keras.ops.logsumexp(keras.ops.log_softmax(logits), axis=1)


def members_of(network: keras.Model) -> list[keras.Model]:
    """Independent members of a network (at least one): models from images to logits that share its weights."""
    members = [part for part in network.layers if isinstance(part, keras.Model) and part.name.startswith(MEMBER)]
    return members or [keras.Model(network.input, network.get_layer(LOGITS).output, name=network.name)]


def build_layers(model: Model) -> list[tuple[str, keras.Layer]]:
    """Build the configured layers in order, each with its key in the configuration."""
    if model.builder is not None:
        layers = build(model.builder, "model.builder")
        if not isinstance(layers, list):
            raise PipelineError(f"model.builder: {model.builder[TARGET_KEY]} must return a list of Keras layers")
        built = [(f"model.builder[{index}]", layer) for index, layer in enumerate(layers)]
    else:
        keyed = [(f"model.layers.{index}", spec) for index, spec in enumerate(model.layers)]
        built = [(key, build(spec, key)) for key, spec in keyed]
    for key, layer in built:
        check_layer(layer, key)
    check_names(built, RESERVED, MEMBER)
    return built


def build_augmentation(training: Training, image_shape: tuple[int, ...]) -> list[keras.Layer]:
    """Build the layers that augment training images (N, height, width) before the network.

    Raises PipelineError if a layer rejects its arguments or cannot augment such images.
    """
    built = [build(spec, f"training.augmentation.{index}") for index, spec in enumerate(training.augmentation)]
    for index, layer in enumerate(built):
        if not isinstance(layer, keras.Layer):
            target = training.augmentation[index][TARGET_KEY]
            raise PipelineError(f"training.augmentation.{index}: {target} is not a Keras layer")
    check_augmentation(built, image_shape)
    return built


def build_optimizer(optimizer: Optimizer, training: Training, updates: int) -> keras.optimizers.Optimizer:
    """Build the configured Keras optimizer, for a training run with this number of `updates`.

    Raises PipelineError if it rejects its arguments.
    """
    built = build(optimizer.model_dump(by_alias=True), "optimizer")
    if not isinstance(built, keras.optimizers.Optimizer):
        raise PipelineError(f"optimizer: {optimizer.target} is not an optimizer; use one from keras.optimizers")
    if training.decay == "cosine":
        rise = min(round(updates * training.warm_up), updates - 1)  # leave an update for the decay
        built.learning_rate = cosine_schedule(optimizer.learning_rate, rise, updates)
    return built


def cosine_schedule(peak: float, rise: int, updates: int) -> keras.optimizers.schedules.LearningRateSchedule:
    """Linear warm-up to `peak` over the first `rise` updates, then cosine decay to 0 over the remaining ones."""
    if not rise:
        return keras.optimizers.schedules.CosineDecay(peak, updates)
    return keras.optimizers.schedules.CosineDecay(0.0, updates - rise, warmup_target=peak, warmup_steps=rise)
